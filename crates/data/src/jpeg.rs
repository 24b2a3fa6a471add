/// Whether the bytes of a JPEG file reach its end-of-image marker; anything else than a JPEG counts as complete.
///
/// The decoder fills what is missing of a truncated file with grey and says nothing. Segments are walked by their
/// lengths, because a thumbnail inside one has an end marker of its own; in coded data 0xff is followed by 0, a
/// restart marker or another 0xff unless a segment begins (ITU-T T.81, B.1.1).
pub(crate) fn is_complete(bytes: &[u8]) -> bool {
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return true;
    }
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xff, 0xd9) => return true,
            (0xff, 0xff) => at += 1,
            // Stuffed zero, restart and start markers stand alone.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => at += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_complete;

    #[test]
    fn segments_and_coded_data_are_walked() {
        let thumbnail = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 2, 7, 0xff, 0, 9, 0xff, 0xd3, 1, 0xff, 0xff];
        let start = [&[0xff, 0xd8][..], &thumbnail, &scan].concat();
        assert!(is_complete(&[&start[..], &[0xd9]].concat()));
        assert!(is_complete(&[&start[..], &[0xd9, 0, 0, b'x']].concat()));
        for len in 2..=start.len() {
            assert!(!is_complete(&start[..len]), "{len}");
        }
        assert!(is_complete(b"\x89PNG") && is_complete(b""));
    }
}

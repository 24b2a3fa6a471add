//! Memory that begins at a cache line.

/// Numbers that begin at a cache line.
pub struct Aligned<T> {
    numbers: Vec<T>,
    start: usize,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<T: Copy> Aligned<T> {
    /// `len` equal numbers.
    pub fn new(len: usize, value: T) -> Self {
        let room = LINE / size_of::<T>().max(1);
        let numbers = vec![value; len + room];
        let start = numbers.as_ptr().align_offset(LINE);
        // Alignment is a matter of speed alone.
        Self { start: if start <= room { start } else { 0 }, numbers, len }
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[T] {
        &self.numbers[self.start..self.start + self.len]
    }

    /// The numbers.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..self.start + self.len]
    }
}

impl<T> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} aligned numbers", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_size_begin_at_a_line() {
        fn check<T: Copy + PartialEq>(len: usize, value: T) {
            let mut aligned = Aligned::new(len, value);
            assert_eq!((aligned.as_slice().len(), aligned.as_mut_slice().len()), (len, len));
            assert!(aligned.as_slice().iter().all(|number| *number == value));
            assert!(aligned.as_slice().as_ptr().addr().is_multiple_of(LINE));
        }
        for len in [0, 1, 15, 16, 1000] {
            check(len, 3_u16);
            check(len, 0.5_f32);
            check(len, 7_u64);
        }
    }
}

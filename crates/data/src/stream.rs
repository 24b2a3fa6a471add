use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// ChaCha8 keyed by a purpose and a seed, at the start of a numbered stream: a pure function of its arguments.
pub(crate) fn stream(purpose: &[u8; 16], seed: u64, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..16].copy_from_slice(purpose);
    key[16..24].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(number);
    rng
}

/// Maps a random word to `0..n` for `1 <= n <= 2^32`; the bias is below `n / 2^32`.
pub(crate) fn below(word: u32, n: usize) -> usize {
    ((u64::from(word) * n as u64) >> 32) as usize
}

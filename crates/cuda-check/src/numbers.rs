//! Numbers that are the same in every run.

/// Uniform in -1..1 from a seed.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn word(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40
    }

    /// In `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.word()).unwrap_or(0) % n.max(1)
    }

    pub(crate) fn list(&mut self, len: usize) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "24 bits")]
        let mut one = || self.word() as f32 / (1 << 23) as f32 - 1.0;
        (0..len).map(|_| one()).collect()
    }
}

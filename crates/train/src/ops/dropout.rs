use super::{Arg, Layer, Saved};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

/// Zeros with probability `p`, the rest times `1 / (1 - p)`; one operand of any shape.
///
/// The zeros are a function of seed, iteration, node name and position alone, so a resumed run needs no saved state.
pub(crate) struct RandomZeros {
    pub(crate) p: f32,
    pub(crate) seed: u64,
    pub(crate) iteration: u64,
    pub(crate) node: String,
}

impl RandomZeros {
    pub(crate) fn factors(&self, len: usize) -> Vec<f32> {
        let key = Sha256::new()
            .chain_update(self.seed.to_le_bytes())
            .chain_update(self.iteration.to_le_bytes())
            .chain_update(&self.node)
            .finalize();
        let mut rng = ChaCha8Rng::from_seed(key.into());
        let scale = 1.0 / (1.0 - self.p);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "p is in [0, 1)")]
        let threshold = (f64::from(self.p) * 2f64.powi(32)) as u32;
        (0..len).map(|_| if rng.next_u32() < threshold { 0.0 } else { scale }).collect()
    }
}

impl Layer for RandomZeros {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], saved: &mut Saved, _keep: bool) {
        let factors = self.factors(dst.len());
        for ((y, x), f) in dst.iter_mut().zip(args[0].data).zip(&factors) {
            *y = x * f;
        }
        *saved = Saved::Factors(factors);
    }

    fn backward(
        &self,
        _args: &[Arg<'_>],
        _dst: &[f32],
        saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let (Some(grad), Saved::Factors(factors)) = (&mut grads[0], saved) else { return };
        for ((dx, g), f) in grad.iter_mut().zip(grad_dst).zip(factors) {
            *dx = g * f;
        }
    }
}

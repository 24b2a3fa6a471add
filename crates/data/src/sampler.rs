use crate::stream::{below, stream};
use rand::Rng as _;
use std::sync::{Arc, Mutex};

/// Order in which training images are seen: every epoch a permutation keyed by seed and epoch, cut into batches that
/// run over the borders of epochs, so that all batches are equally large and every image is seen once an epoch.
///
/// Stateless: [`Sampler::indices`] is a function of the iteration alone. (The permutations of the last two epochs are
/// kept, which changes nothing but the time.)
#[derive(Debug)]
pub struct Sampler {
    len: usize,
    batch: usize,
    seed: u64,
    recent: Mutex<Vec<(u64, Arc<[u32]>)>>,
}

impl Sampler {
    /// A sampler of `len` images in batches of `batch`, which may be larger than `len`.
    ///
    /// # Panics
    /// If `len` is 0 or above `u32::MAX`; a non-empty [`crate::Dataset`] never is.
    #[must_use]
    pub fn new(len: usize, batch: usize, seed: u64) -> Self {
        assert!(len > 0 && u32::try_from(len).is_ok(), "a sampler needs 1 to {} images, not {len}", u32::MAX);
        Self { len, batch, seed, recent: Mutex::default() }
    }

    /// Indices of the images of a batch, iterations counted from 0.
    #[must_use]
    pub fn indices(&self, iteration: u64) -> Vec<u32> {
        let mut indices = Vec::with_capacity(self.batch);
        let start = u128::from(iteration) * self.batch as u128;
        // An epoch beyond 2^64 comes only with an iteration that no run reaches; the stream number then wraps.
        let (mut epoch, mut at) = ((start / self.len as u128) as u64, (start % self.len as u128) as usize);
        while indices.len() < self.batch {
            let order = self.order(epoch);
            let end = self.len.min(at + self.batch - indices.len());
            indices.extend_from_slice(&order[at..end]);
            (epoch, at) = (epoch.wrapping_add(1), 0);
        }
        indices
    }

    fn order(&self, epoch: u64) -> Arc<[u32]> {
        // A permutation is stored whole, so that a panic elsewhere cannot leave a broken one behind.
        let mut recent = self.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, order)) = recent.iter().find(|(known, _)| *known == epoch) {
            return order.clone();
        }
        let order: Arc<[u32]> = permutation(self.len, self.seed, epoch).into();
        recent.truncate(1);
        recent.insert(0, (epoch, order.clone()));
        order
    }
}

/// A uniformly random permutation of `0..len` (Fisher and Yates).
fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut rng = stream(b"cofilter-sampler", seed, epoch);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        order.swap(i, below(rng.next_u32(), i + 1));
    }
    order
}

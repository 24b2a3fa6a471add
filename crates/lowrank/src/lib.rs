//! Low-rank approximation of convolutions and fully connected layers.

//! CPU kernels for convolutional networks: products, convolutions, pooling, normalisation.

//! Force regularisation: gradients that pull filters towards each other.

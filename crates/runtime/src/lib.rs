//! Inference of compiled networks on CPU, deployable alone.

//! Image data sets from files, deterministic shuffling and augmentation.

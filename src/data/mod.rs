//! Tokenizers, indexed token files, sample order.

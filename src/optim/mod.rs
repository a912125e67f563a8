//! AdamW on flat fp32 state, learning-rate schedules, clipping.

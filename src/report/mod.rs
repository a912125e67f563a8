//! A run as a page: what its run directory says, thinned out until a browser shows a million steps at once, in one file of HTML
//! that needs no network; and the same page served while the run goes on.

pub mod decimate;
pub mod gather;
pub mod page;
pub mod serve;

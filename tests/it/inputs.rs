//! What users' files did to herd, as tables: each row makes an input, runs one command on it, and says what must come of it.
//! A new row goes into the file of its subject; a new subject is one more file, with one more test here.

mod config;
mod data;
mod resume;
mod table;

#[test]
fn data_rows() {
    table::check(&data::rows());
}

#[test]
fn config_rows() {
    table::check(&config::rows());
}

#[test]
fn resume_rows() {
    table::check(&resume::rows());
}

#[test]
fn token_rows() {
    table::check(&data::tokens());
}

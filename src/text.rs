//! Text files that other programs wrote.

/// `bytes` without the byte order mark of UTF-8 that editors and spreadsheets on Windows put before them.
pub fn unmarked(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

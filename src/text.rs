//! Bytes that are text: what other programs wrote, lines that are still coming, numbers for people.

/// `bytes` without the byte order mark of UTF-8 that editors and spreadsheets on Windows put before them.
pub fn unmarked(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Takes the whole lines, ends included, off the front of bytes that are still coming; the beginning of a line stays.
pub fn whole_lines(coming: &mut Vec<u8>) -> Vec<u8> {
    let end = coming.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let rest = coming.split_off(end);
    std::mem::replace(coming, rest)
}

/// 1234567 as 1,234,567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

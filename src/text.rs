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

/// The word that a value is in JSON; empty for one that is no word.
pub fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The system's words for an error, without the trailing "(os error N)".
pub fn short_reason(e: &std::io::Error) -> String {
    let s = e.to_string();
    match s.find(" (os error") {
        Some(i) => s[..i].to_lowercase(),
        None => s,
    }
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

/// Three digits and a decimal unit: 8.03 G.
pub fn decimal(n: f64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes of files and transfers, three digits and a decimal unit: 3.70 MB.
pub fn bytes(n: u64) -> String {
    format!("{}B", decimal(n as f64))
}

/// A length of time: 12 µs, 445 ms, 1.50 s, 15.0 s, 2.5 min, 4.5 years.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s if s < 1e8 => format!("{:.1} days", s / 86_400.0),
        s => format!("{:.1} years", s / 86_400.0 / 365.25),
    }
}

/// Three digits and a binary unit: 1.50 GiB.
pub fn binary(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(mut n: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= base && unit + 1 < units.len() {
        n /= base;
        unit += 1;
    }
    let digits = if unit == 0 || n >= 100.0 {
        0
    } else if n >= 10.0 {
        1
    } else {
        2
    };
    format!("{n:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        assert_eq!([grouped(0), grouped(999), grouped(4194304)], ["0", "999", "4,194,304"]);
        assert_eq!(decimal(8.03e9), "8.03 G");
        assert_eq!(decimal(512.0), "512 ");
        assert_eq!([bytes(12), bytes(3_700_000)], ["12 B", "3.70 MB"]);
        assert_eq!(
            [span(2e-5), span(0.0123), span(0.4454), span(1.5), span(15.0)],
            ["20 µs", "12.3 ms", "445 ms", "1.50 s", "15.0 s"]
        );
        assert_eq!([span(150.0), span(1e4), span(2e5), span(2e8)], ["2.5 min", "2.8 h", "2.3 days", "6.3 years"]);
        assert_eq!(binary(3 << 29), "1.50 GiB");
        assert_eq!(binary(u64::MAX), "16.0 EiB");
    }
}

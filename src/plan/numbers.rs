//! Nearby numbers that would work, in words.

/// All divisors of `n`, from 1 up.
pub fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// The option nearest to `n` below and the nearest above, as words.
pub fn near(n: usize, options: &[usize]) -> String {
    let below = options.iter().copied().filter(|&o| o < n).max();
    let above = options.iter().copied().filter(|&o| o > n).min();
    [below, above].into_iter().flatten().map(|o| o.to_string()).collect::<Vec<_>>().join(" or ")
}

/// The multiples of `unit` around `n`, as words.
pub fn multiples(n: usize, unit: usize) -> String {
    match n / unit * unit {
        0 => unit.to_string(),
        below => format!("{below} or {}", below + unit),
    }
}

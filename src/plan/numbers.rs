//! Nearby numbers that would work, in words.

/// All divisors of `n`, from 1 up.
pub fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|l| l * l > n);
    small.iter().copied().chain(large).collect()
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

#[cfg(test)]
mod tests {
    use super::divisors;

    #[test]
    fn divisors_are_all_of_them_in_order() {
        for n in 0..200 {
            assert_eq!(divisors(n), (1..=n).filter(|d| n % d == 0).collect::<Vec<_>>(), "{n}");
        }
    }
}

//! The verdict of the site's own health check, taken over.

use crate::doctor::check::Check;
use crate::doctor::facts::HostFacts;

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let name = "health check";
    if hosts.iter().all(|h| h.health.is_none()) {
        return vec![Check::skipped(name, "launch.health_check names no program")];
    }
    let mut out = Vec::new();
    for h in hosts {
        let fact = match &h.health {
            Some(Ok((0, _))) => continue,
            Some(Ok((code, words))) => format!("ended with code {code}: {words}"),
            Some(Err(why)) => why.clone(),
            None => "did not run".into(),
        };
        out.push(Check::red(name, fact, "see what the program checks; run it there by hand").on([&h.node]));
    }
    if out.is_empty() {
        out.push(Check::green(name, format!("ended with code 0 on all of {} nodes", hosts.len())));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    #[test]
    fn a_code_other_than_0_is_red_with_its_words() {
        let host = |i: usize, code| HostFacts {
            node: format!("n{i}"),
            health: Some(Ok((code, "disk bad".into()))),
            ..HostFacts::default()
        };
        let found = judge(&[host(0, 0), host(1, 3)]);
        assert_eq!((found.len(), found[0].light, found[0].who()), (1, Light::Red, "n1".into()));
        assert_eq!(found[0].fact, "ended with code 3: disk bad");
        assert_eq!(judge(&[host(0, 0)])[0].light, Light::Green);
        assert_eq!(judge(&[HostFacts::default()])[0].light, Light::Skipped);
    }
}

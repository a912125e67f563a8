//! AWS's shared files: `~/.aws/credentials` and `~/.aws/config`, as the AWS tools read them.
//!
//! Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files". Only static keys, region and
//! endpoint are taken; `role_arn`, `sso_*` and `credential_process` are not followed.

use crate::error::{Error, Exit, Result};
use object_store::aws::AmazonS3ConfigKey as Key;
use std::path::{Path, PathBuf};

/// Settings of the profile that the environment names (`AWS_PROFILE`, else `default`). Missing files are no error, a
/// profile that was asked for and is in neither is ([`Exit::Store`]).
pub fn from_files() -> Result<Vec<(Key, String)>> {
    let asked = std::env::var("AWS_PROFILE").ok().filter(|p| !p.is_empty());
    let profile = asked.as_deref().unwrap_or("default");
    let (credentials, config) = (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config"));
    let mut found = section(&read(&credentials)?, &[profile]);
    found.extend(section(&read(&config)?, &[&format!("profile {profile}"), profile]));
    match (found.is_empty(), asked) {
        (true, Some(profile)) => Err(Error::new(
            Exit::Store,
            format!("AWS_PROFILE is {profile}, which neither {} nor {} holds", credentials.display(), config.display()),
        )),
        _ => Ok(found),
    }
}

fn file(variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".aws").join(name),
    }
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "read", &e, Exit::Store)),
        other => Ok(other.unwrap_or_default()),
    }
}

/// Known keys of the sections called one of `names`. The first value of a key counts.
fn section(text: &str, names: &[&str]) -> Vec<(Key, String)> {
    let (mut inside, mut found) = (false, Vec::new());
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix('[').and_then(|l| l.split(']').next()) {
            inside = names.contains(&name.trim());
            continue;
        }
        // Indented lines belong to a nested section, which herd does not read.
        let nested = line.starts_with([' ', '\t']);
        let Some((key, value)) = trimmed.split_once('=').filter(|_| inside && !nested && !trimmed.starts_with('#'))
        else {
            continue;
        };
        let key = match key.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => Key::AccessKeyId,
            "aws_secret_access_key" => Key::SecretAccessKey,
            "aws_session_token" => Key::Token,
            "region" => Key::Region,
            "endpoint_url" => Key::Endpoint,
            _ => continue,
        };
        if !found.iter().any(|(k, _)| *k == key) {
            found.push((key, value.trim().to_string()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_others_are_not() {
        let text = "[default]\naws_access_key_id = A\n# aws_session_token = no\n\n[profile lab]\nregion=eu\n\
                    endpoint_url = http://h:1\ns3 =\n  region = nested\nunknown = x\n[other]\nregion = no\n";
        assert_eq!(section(text, &["default"]), [(Key::AccessKeyId, "A".to_string())]);
        let lab = [(Key::Region, "eu".to_string()), (Key::Endpoint, "http://h:1".to_string())];
        assert_eq!(section(text, &["profile lab", "lab"]), lab);
        assert!(section(text, &["none"]).is_empty());
    }
}

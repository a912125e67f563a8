//! A place in an object store: from a URL to an open store, with credentials from the environment and the usual files.
//!
//! Credentials are refused in the URL, because URLs are written to logs and to the run directory.

use crate::error::{Error, Exit, Result};
use crate::store::aws;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

/// Retries of a single request, below those of a whole upload: jittered, growing, bounded in number and time.
const REQUEST_RETRIES: usize = 5;
const REQUEST_RETRY_TIME: Duration = Duration::from_secs(60);
/// A part of 8 MiB must get through in this time: 70 KiB/s.
const REQUEST_TIME: &str = "120 seconds";

/// Whether `text` names a place in an object store rather than a path.
pub fn is_url(text: &str) -> bool {
    let scheme = |(scheme, _): (&str, &str)| scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    text.split_once("://").is_some_and(scheme)
}

/// Opens the store of `url` without a request; the path is the URL's prefix in it.
///
/// Errors: [`Exit::Usage`] for a URL that is none or holds credentials, [`Exit::Store`] for settings that do not fit.
pub fn open(url: &str) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    let (scheme, bucket, prefix) = split(url)?;
    let path = ObjectPath::parse(prefix).map_err(|e| wrong(url, &e.to_string()))?;
    // The process's TLS: asked for by every client, and set by whoever comes first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let refused = |e: object_store::Error| Error::new(Exit::Store, format!("{url}: {}", scrub(&e.to_string())));
    let store: Arc<dyn ObjectStore> = match scheme {
        "s3" => Arc::new(s3(bucket)?.build().map_err(refused)?),
        "gs" => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIME)
                .with_retry(retry())
                .build()
                .map_err(refused)?,
        ),
        "az" => Arc::new(
            MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIME)
                .with_retry(retry())
                .build()
                .map_err(refused)?,
        ),
        // Objects are synced before their names appear, as a store that answers has them.
        _ => Arc::new(LocalFileSystem::new().with_fsync(true)),
    };
    Ok((store, path))
}

/// Whether `url` is one that [`open`] takes, without looking at credentials.
pub fn check(url: &str) -> Result<()> {
    split(url).map(drop)
}

/// Scheme, bucket and prefix of a URL that herd takes.
fn split(url: &str) -> Result<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(url, "it has no scheme"))?;
    if !["s3", "gs", "az", "file"].contains(&scheme) {
        return Err(wrong(url, &format!("the scheme {scheme:?} is not known")));
    }
    // The message must not repeat what may be a secret.
    let hidden = || wrong(&format!("{scheme}://…"), "it holds a user, a password or a query");
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') || rest.contains('?') || rest.contains('#') {
        return Err(hidden().hint("credentials come from the environment or the store's usual files only"));
    }
    match (scheme, rest.split_once('/').unwrap_or((rest, ""))) {
        ("file", ("", path)) if !path.is_empty() => Ok((scheme, "", path.trim_matches('/'))),
        ("file", _) => Err(wrong(url, "it names no absolute path")),
        (_, ("", _)) => Err(wrong(url, "it names no bucket")),
        (_, (bucket, prefix)) => Ok((scheme, bucket, prefix.trim_matches('/'))),
    }
}

fn s3(bucket: &str) -> Result<AmazonS3Builder> {
    let mut b = AmazonS3Builder::from_env();
    // Keys of the environment and of a file are never mixed.
    let keyed = b.get_config_value(&AmazonS3ConfigKey::AccessKeyId).is_some();
    for (key, value) in aws::from_files()? {
        use AmazonS3ConfigKey::{AccessKeyId, SecretAccessKey, Token};
        let credential = matches!(key, AccessKeyId | SecretAccessKey | Token);
        if b.get_config_value(&key).is_none() && !(keyed && credential) {
            b = b.with_config(key, value);
        }
    }
    let insecure = b.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(|e| e.starts_with("http://"));
    b = b.with_bucket_name(bucket).with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIME);
    // An endpoint spelled http:// has said so.
    Ok(if insecure { b.with_allow_http(true) } else { b }.with_retry(retry()))
}

fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(10), base: 2.0 };
    RetryConfig { backoff, max_retries: REQUEST_RETRIES, retry_timeout: REQUEST_RETRY_TIME }
}

fn wrong(url: &str, why: &str) -> Error {
    Error::new(Exit::Usage, format!("{url} is no place for checkpoints: {why}"))
        .hint("s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path")
}

/// `text` without any credential of this process's environment, for messages made by others.
pub fn scrub(text: &str) -> String {
    let secret = |key: &str| {
        let key = key.to_ascii_uppercase();
        ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|p| key.starts_with(p))
            && ["KEY", "TOKEN", "SECRET", "PASSWORD", "SAS"].iter().any(|w| key.contains(w))
    };
    let mut text = text.to_string();
    for (key, value) in std::env::vars().filter(|(k, v)| secret(k) && v.len() >= 6) {
        text = text.replace(&value, &format!("({key})"));
    }
    // Signed URLs carry signatures in their query.
    text.split(' ')
        .map(|w| if w.contains("://") { w.split('?').next().unwrap_or(w) } else { w })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_bad_ones_refused_without_repeating_secrets() {
        assert_eq!(split("s3://b/x/y/").unwrap(), ("s3", "b", "x/y"));
        assert_eq!(split("gs://b").unwrap(), ("gs", "b", ""));
        assert_eq!(split("file:///a/b").unwrap(), ("file", "", "a/b"));
        for (url, word) in [
            ("http://host/x", "\"http\" is not known"),
            ("nothing", "no scheme"),
            ("s3:///x", "no bucket"),
            ("file://x/y", "no absolute path"),
            ("file:///", "no absolute path"),
            ("s3://AKIA:hushhush@b/x", "a user, a password"),
            ("az://c/x?sig=hushhush", "a query"),
        ] {
            let e = split(url).unwrap_err();
            assert_eq!(e.exit, Exit::Usage);
            assert!(e.to_string().contains(word), "{e}");
            assert!(!e.to_string().contains("hushhush"), "{e}");
        }
        assert!(
            is_url("s3://b")
                && is_url("weird://b")
                && !is_url("a/b")
                && !is_url("/a:/b")
                && !is_url("x://"[..1].into())
        );
    }

    #[test]
    fn signed_urls_lose_their_query() {
        assert_eq!(scrub("cannot PUT https://h/x?sig=abc now"), "cannot PUT https://h/x now");
    }
}

//! Where the server listens, and who may speak to it: a Unix socket of mode 0600, whose mode is the key; or loopback, with a token in a
//! file that only its owner can read, for on a shared node loopback is everybody's.

use crate::durable::refused;
use crate::error::{Error, Exit, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket in the run directory.
pub const SOCKET: &str = "serve.sock";
/// Holds the token that clients of a TCP port must send ([`token`]).
pub const TOKEN: &str = "serve.token";
/// Holds the door's [`Door::name`], as long as the server runs.
pub const ADDRESS: &str = "serve.address";

/// An open door.
pub enum Door {
    /// A Unix socket of mode 0600 and its path; the file goes when the door is dropped.
    Unix(UnixListener, PathBuf),
    /// A TCP port and the address it is bound to; where port 0 was asked for, with the port it got.
    Tcp(TcpListener, SocketAddr),
}

impl Door {
    /// A Unix socket at `path`. One that a dead server left is replaced.
    pub fn unix(path: &Path) -> Result<Door> {
        use std::os::unix::fs::FileTypeExt;
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            if UnixStream::connect(path).is_ok() {
                let fact = format!("another server listens on {}", path.display());
                return Err(Error::new(Exit::Usage, fact).hint("end it, or give another run directory or --socket"));
            }
            std::fs::remove_file(path).map_err(refused(path, "remove the old socket"))?;
        }
        // The socket has its mode from the first moment on.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(|e| {
            let bytes = path.as_os_str().len();
            let hint = match bytes > 107 {
                true => format!("its path has {bytes} bytes, a socket's has 107 at most: give a shorter --socket"),
                false => "some filesystems take no sockets: give a --socket on a local one".into(),
            };
            Error::new(Exit::Storage, format!("cannot listen on {}: {e}", path.display())).hint(hint)
        })?;
        Ok(Door::Unix(listener, path.to_path_buf()))
    }

    /// `address`; one that is not loopback only where `open` says so.
    pub fn tcp(address: SocketAddr, open: bool) -> Result<Door> {
        if !address.ip().is_loopback() && !open {
            let fact = format!("{address} can be reached from other hosts, and what goes over it is not encrypted");
            return Err(Error::new(Exit::Usage, fact)
                .hint("listen on 127.0.0.1 and come through ssh; or say --open-to-network if that is what you want"));
        }
        let failed = |e: std::io::Error| {
            Error::new(Exit::Usage, format!("cannot listen on {address}: {e}")).hint("port 0 takes one that is free")
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Door::Tcp(listener, bound))
    }

    /// For a person, and for [`ADDRESS`].
    pub fn name(&self) -> String {
        match self {
            Door::Unix(_, path) => format!("unix:{}", path.display()),
            Door::Tcp(_, address) => format!("http://{address}"),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Door::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The token in `path`: the one that is there, so that clients of an earlier server go on; else a new one.
///
/// Errors: [`Exit::Usage`] where others can read it, or it is no token; [`Exit::Storage`].
pub fn token(path: &Path) -> Result<String> {
    match File::open(path) {
        Ok(mut file) => {
            let meta = file.metadata().map_err(refused(path, "read"))?;
            let (mode, owner) = (meta.permissions().mode() & 0o777, meta.uid());
            if mode & 0o077 != 0 || owner != rustix::process::geteuid().as_raw() {
                let fact = format!("{} has mode {mode:03o} and owner {owner}: others can read it", path.display());
                return Err(Error::new(Exit::Usage, fact).hint("remove it: a new one is made"));
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(refused(path, "read"))?;
            let token = text.trim().to_string();
            if token.len() < 16 || !token.bytes().all(|b| b.is_ascii_graphic()) {
                let fact = format!("{} holds no token of 16 characters or more", path.display());
                return Err(Error::new(Exit::Usage, fact).hint("remove it: a new one is made"));
            }
            Ok(token)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0u8; 32];
            let source = Path::new("/dev/urandom");
            let read = File::open(source).and_then(|mut f| f.read_exact(&mut bytes));
            read.map_err(refused(source, "read"))?;
            let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let mut file = file.map_err(refused(path, "create"))?;
            file.write_all(format!("{token}\n").as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(refused(path, "write"))?;
            Ok(token)
        }
        Err(e) => Err(refused(path, "read")(e)),
    }
}

/// Whether `given` is the token, in a time that says nothing about where they differ.
pub fn same_token(token: &str, given: &str) -> bool {
    let (a, b) = (token.as_bytes(), given.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_owners_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKEN);
        let made = token(&path).unwrap();
        assert_eq!((made.len(), std::fs::metadata(&path).unwrap().permissions().mode() & 0o777), (64, 0o600));
        assert_eq!(token(&path).unwrap(), made);
        assert!(same_token(&made, &made) && !same_token(&made, &made[1..]) && !same_token(&made, &"0".repeat(64)));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(token(&path).unwrap_err().fact.contains("644"));
    }

    #[test]
    fn no_port_is_open_to_others_unless_that_is_said() {
        let e = Door::tcp("0.0.0.0:0".parse().unwrap(), false).err().unwrap();
        assert!(e.exit == Exit::Usage && e.hint.unwrap().contains("--open-to-network"));
        assert!(Door::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap().name().starts_with("http://127.0.0.1:"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let door = Door::unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Door::unix(&path).err().unwrap().fact.contains("another server"));
        drop(door);
        assert!(!path.exists());
    }
}

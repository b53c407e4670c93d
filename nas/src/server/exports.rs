//! What an NFS export is: a directory of a file system, and who may do what in it.

use std::net::IpAddr;

use blockdev::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Most hosts that one export may name.
const HOSTS_MAX: usize = 1000;

/// What a host may do in an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nothing.
    #[default]
    None,
    /// Read; its root is nobody.
    ReadOnly,
    /// Read and write; its root is nobody.
    ReadWrite,
    /// Read; its root is root.
    ReadOnlyRoot,
    /// Read and write; its root is root.
    Root,
}

/// Hosts that share what they may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// Address, network (`10.0.0.0/8`), name, name with `*` or `?`, or `*` for all.
    pub hosts: Vec<String>,
    /// What they may do.
    pub access: Access,
}

/// An NFS export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Part of the file handles clients hold: never changes, never given twice at the same time.
    pub id: u16,
    /// The file system.
    pub file_system: String,
    /// The directory of it that is exported, below its root; empty for all of it.
    pub directory: String,
    /// What hosts may do that `hosts` does not name.
    pub default_access: Access,
    /// What those may do that it names; the first that fits counts.
    pub hosts: Vec<Hosts>,
    /// Who a host's root, and whoever has no name, is.
    pub anonymous_uid: u32,
    /// Their group.
    pub anonymous_gid: u32,
}

/// Fails unless `path` can be that of an export: `/` and a name, or several.
pub fn check_path(path: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::invalid(format!("{path:?} cannot be the path of an export: {why}")));
    let Some(names) = path.strip_prefix('/') else { return wrong("it begins with '/'") };
    if path.len() > 255 {
        return wrong("it has at most 255 characters");
    }
    for name in names.split('/') {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if name.is_empty() || !plain || name.starts_with('.') {
            return wrong("between slashes are A-Z a-z 0-9 . _ -, not a dot first");
        }
    }
    Ok(())
}

/// Fails unless `directory` can name one below the root of a file system: no `..`, nothing that a configuration file cannot hold.
pub fn check_directory(directory: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::invalid(format!("{directory:?} cannot be exported: {why}")));
    if directory.is_empty() {
        return Ok(());
    }
    if directory.len() > 1024 || directory.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
        return wrong("its path has at most 1024 characters, without quotes, backslashes and control characters");
    }
    if directory.split('/').any(|name| name.is_empty() || name == "." || name == "..") {
        return wrong("name it from the root of the file system, such as a/b");
    }
    Ok(())
}

/// Fails unless all hosts can be understood; writes each in the one way that Ganesha understands as meant. Names count only if they can be asked for.
pub fn check_hosts(all: &mut [Hosts], names: bool) -> Result<()> {
    if all.iter().map(|group| group.hosts.len()).sum::<usize>() > HOSTS_MAX {
        return Err(Error::invalid(format!("an export names at most {HOSTS_MAX} hosts; use networks")));
    }
    if all.iter().any(|group| group.hosts.is_empty()) {
        return Err(Error::invalid("a list of hosts that is given names at least one"));
    }
    for host in all.iter_mut().flat_map(|group| &mut group.hosts) {
        *host = plain_host(host, names)?;
    }
    Ok(())
}

fn plain_host(host: &str, names: bool) -> Result<String> {
    let wrong = || {
        let text = format!(
            "'{host}' is no host: such as 10.0.0.7, 10.0.0.0/8, fd00::/64, client.example.com, *.example.com, or * for all"
        );
        Error::invalid(text)
    };
    if host == "*" {
        return Ok(host.to_owned());
    }
    if let Some((network, bits)) = host.split_once('/') {
        let network: IpAddr = network.parse().map_err(|_| wrong())?;
        let plain = bits.bytes().all(|b| b.is_ascii_digit());
        let bits = bits.parse::<u8>().ok().filter(|_| plain).ok_or_else(wrong)?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        return if bits <= most { Ok(format!("{network}/{bits}")) } else { Err(wrong()) };
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        // To Ganesha it would be everybody's.
        return if address.is_unspecified() { Err(wrong()) } else { Ok(address.to_string()) };
    }
    let named = host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*' | '?'));
    let begins = host.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '*' | '?'));
    // Words that mean something else in its configuration.
    let word = ["on", "off", "yes", "no", "true", "false"].contains(&host.to_ascii_lowercase().as_str());
    if !named || !begins || word || host.len() > 255 {
        return Err(wrong());
    }
    if !names {
        let text = format!(
            "'{host}' is a name, and the NAS server has no name servers (nas server create --dns): give addresses"
        );
        return Err(Error::invalid(text));
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_directories_and_hosts_are_checked() {
        for good in ["/home", "/a/b-c/d_1.x"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "home", "/", "/a//b", "/../a", "/a b", "/a;", "/a\"", "/a\n", "/.hidden"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for good in ["", "a", "a/b c/ü"] {
            assert!(check_directory(good).is_ok(), "{good}");
        }
        for bad in ["/a", "a/", "a/../b", "..", ".", "a\"b", "a\\b", "a\nb"] {
            assert!(check_directory(bad).is_err(), "{bad:?}");
        }
        for good in
            ["*", "10.0.0.7", "10.0.0.0/8", "fd00::1", "fd00::/64", "client", "*.example.com", "c?", "0.0.0.0/0"]
        {
            assert_eq!(plain_host(good, true).ok().as_deref(), Some(good));
        }
        let bad =
            ["", "10.0.0", "10.0.0.0/33", "x/8", "a b", "a;b", "@group", "a,b", "\"", "10.0.0.300", "10.0.0.0/+8"];
        for bad in bad.into_iter().chain(["0.0.0.0", "::", "3par.lan", "-x", "on", "True", "10.0.0.0/"]) {
            assert!(plain_host(bad, true).is_err(), "{bad:?}");
        }
        assert_eq!(plain_host("10.0.0.0/08", false).ok().as_deref(), Some("10.0.0.0/8"));
        assert!(plain_host("client", false).is_err() && plain_host("*", false).is_ok());
        assert!(check_hosts(&mut [Hosts { hosts: Vec::new(), access: Access::Root }], true).is_err());
    }
}

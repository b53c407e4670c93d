//! Network namespaces, and the addresses of NAS servers in them. Everything is done by `ip` of iproute2.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use blockdev::error::{Context, Error, ErrorKind, Result};
use xxhash_rust::xxh3::xxh3_64;

/// What a server's interface is called in its namespace.
const INSIDE: &str = "eth0";

/// Addresses of the host's end of a private link, which a server without an interface sends everything to.
const GATEWAY_4: &str = "169.254.0.1";
const GATEWAY_6: &str = "fe80::1";

/// How long processes that were told to end by SIGKILL may take.
const END: Duration = Duration::from_secs(10);

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("'{text}' is no address: such as 192.168.1.20/24, or fd00::20/64"));
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        let special = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
        if prefix == 0 || prefix > bits || special {
            return Err(wrong());
        }
        Ok(Self { ip, prefix })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// The network of one NAS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Name of the namespace, for `ip netns`.
    pub namespace: String,
    /// The server's address.
    pub address: Address,
    /// Where everything beyond its own network goes.
    pub gateway: Option<IpAddr>,
    /// Interface of this machine, or bridge, through which others reach the server; without one only this machine does.
    pub interface: Option<String>,
}

impl Network {
    /// Makes the namespace, with its address up and told to the neighbours. What is left of it from before goes first.
    pub fn up(&self) -> Result<()> {
        down(&self.namespace)?;
        let up = self.make();
        if up.is_err() {
            let _ = down(&self.namespace);
        }
        up.context(format_args!("making network namespace '{}' with address {}", self.namespace, self.address))
    }

    fn make(&self) -> Result<()> {
        let (ns, host) = (self.namespace.as_str(), link_of(&self.namespace));
        // With the mode that ip would give it if the daemon's own did not forbid that.
        let parent = Path::new("/run/netns");
        if !parent.exists() {
            let made = std::fs::create_dir(parent);
            made.and_then(|()| std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)))
                .map_err(|e| Error::io(format!("making {}: {e}", parent.display())))?;
        }
        ip(&["netns", "add", ns])?;
        ip(&["-n", ns, "link", "set", "lo", "up"])?;
        match self.interface.as_deref() {
            Some(bridge) if Path::new("/sys/class/net").join(bridge).join("bridge").exists() => {
                ip(&["link", "add", &host, "type", "veth", "peer", "name", INSIDE, "netns", ns])?;
                ip(&["link", "set", &host, "master", bridge, "up"])?;
            }
            Some(parent) => {
                ip(&["link", "add", &host, "link", parent, "type", "macvlan", "mode", "bridge"])?;
                ip(&["link", "set", &host, "netns", ns, "name", INSIDE])?;
            }
            None => {
                ip(&["link", "add", &host, "type", "veth", "peer", "name", INSIDE, "netns", ns])?;
                ip(&["link", "set", &host, "up"])?;
            }
        }
        // With these the kernel tells the neighbours whose address it is now as soon as the interface is up.
        // And it has no other address than its own: rules about hosts would not hold for what comes by those.
        let six = self.address.ip.is_ipv6();
        let told = "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify; cd /proc/sys/net/ipv6/conf/eth0 2>/dev/null || exit 0; \
            echo 1 >ndisc_notify; echo 0 >accept_ra; echo 0 >autoconf; echo \"$1\" >disable_ipv6";
        ip(&["netns", "exec", ns, "sh", "-c", told, "sh", if six { "0" } else { "1" }])?;
        let family = if six { "-6" } else { "-4" };
        let duplicates: &[&str] = if six { &["nodad"] } else { &[] };
        let address = match self.interface {
            Some(_) => self.address.to_string(),
            None => self.address.ip.to_string(),
        };
        ip(&[&["-n", ns, "addr", "add", &address, "dev", INSIDE], duplicates].concat())?;
        ip(&["-n", ns, "link", "set", INSIDE, "up"])?;
        if self.interface.is_none() {
            let here = if six { GATEWAY_6 } else { GATEWAY_4 };
            let length = if six { "/64" } else { "/32" };
            ip(&[&["addr", "replace", &format!("{here}{length}"), "dev", &host], duplicates].concat())?;
            ip(&[family, "route", "add", &self.address.ip.to_string(), "dev", &host])?;
            ip(&["-n", ns, family, "route", "add", "default", "via", here, "dev", INSIDE, "onlink"])?;
        }
        if let Some(gateway) = self.gateway {
            ip(&[
                "-n",
                ns,
                family,
                "route",
                "replace",
                "default",
                "via",
                &gateway.to_string(),
                "dev",
                INSIDE,
                "onlink",
            ])?;
        }
        Ok(())
    }
}

/// Whether an address is one of this machine's own.
pub fn is_local(address: IpAddr) -> Result<bool> {
    let text = ip(&["-o", "addr", "show"])?;
    let all = text.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    Ok(all.filter_map(|ip| ip.parse::<IpAddr>().ok()).any(|ip| ip == address))
}

/// Whether this machine has an interface of that name.
pub fn has_interface(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('/')
        && name != "."
        && name != ".."
        && Path::new("/sys/class/net").join(name).exists()
}

/// Ends every process in a namespace and takes it away, with its interfaces. None is fine.
pub fn down(namespace: &str) -> Result<()> {
    if path_of(namespace).exists() {
        end_all(namespace)?;
        // The interface goes at once, not when the kernel gets to it: the next one has its name.
        let _ = ip(&["link", "del", &link_of(namespace)]);
        let _ = ip(&["-n", namespace, "link", "del", INSIDE]);
        ip(&["netns", "del", namespace])?;
    }
    Ok(())
}

/// The file that keeps a namespace.
pub fn path_of(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn end_all(namespace: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let text = ip(&["netns", "pids", namespace])?;
        let pids: Vec<i32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if began.elapsed() > END {
            return Err(Error::new(ErrorKind::Busy, format!("processes in '{namespace}' do not end: {pids:?}")));
        }
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the host's end of a namespace's link is called: names of interfaces have at most 15 characters.
fn link_of(namespace: &str) -> String {
    format!("ash{:010x}", xxh3_64(namespace.as_bytes()) >> 24)
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|e| {
        let text = format!("running ip (package iproute2): {e}");
        Error::new(ErrorKind::Unsupported, text)
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::io(format!("ip {}: {}", arguments.join(" "), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        for (text, shown) in [
            ("10.0.0.5/24", "10.0.0.5/24"),
            ("10.0.0.5", "10.0.0.5/32"),
            ("fd00::5/64", "fd00::5/64"),
            ("fd00::5", "fd00::5/128"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).ok().as_deref(), Some(shown));
        }
        for text in [
            "",
            "x",
            "10.0.0.5/33",
            "10.0.0.5/",
            "10.0.0.5/0",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "224.0.0.1/24",
            "fd00::5/129",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn links_have_short_names_of_their_own() {
        let (a, b) = (link_of("ashlar-12345678-files"), link_of("ashlar-12345678-other"));
        assert!(a.len() <= 15 && a != b, "{a} {b}");
        assert!(!has_interface("../net/lo") && !has_interface("") && has_interface("lo"));
    }
}

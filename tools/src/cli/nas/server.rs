//! `ashlar nas server`.

use hyper::Method;

use crate::cli::volume::done;
use crate::cli::{Global, talk};
use crate::client::segment;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, pairs, show, timestamp};
use crate::wire::servers::{NasServer, NasServerCreate};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a NAS server: an address under which file systems are served
    ///
    /// It runs in a network namespace of its own, with NFS-Ganesha in it. With an interface, everybody who reaches that interface's network
    /// reaches the server (this machine itself only when the interface is a bridge); without one, only this machine does.
    #[command(
        after_help = "Examples:\n  ashlar nas server create files --address 192.168.1.20/24 --interface eth0 --gateway 192.168.1.1\n  ashlar nas server create trial --address 10.77.0.2        # for this machine only"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 40
        name: String,
        /// Its address, with the length of its network's prefix
        #[arg(long, value_name = "ADDRESS/PREFIX")]
        address: String,
        /// Interface or bridge of this machine through which others reach it
        #[arg(long)]
        interface: Option<String>,
        /// Where everything beyond its network goes
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<String>,
        /// Name servers, for exports that name hosts
        #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
        dns: Vec<String>,
        /// Versions of NFS it serves
        #[arg(long, value_name = "VERSIONS", value_delimiter = ',', default_value = "3,4")]
        nfs: Vec<u8>,
    },
    /// All NAS servers
    #[command(visible_alias = "ls")]
    List,
    /// One NAS server in full, with its protocol servers and their logs
    Show {
        /// The server
        name: String,
    },
    /// Stop a NAS server and start it again; clients wait meanwhile
    Restart {
        /// The server
        name: String,
    },
    /// Delete a NAS server that has neither exports nor file systems any more
    #[command(visible_alias = "rm")]
    Delete {
        /// The server
        name: String,
    },
}

const PATH: &str = "/v1/nas/servers";

/// A server, as a path of the API.
pub fn path(name: &str) -> String {
    format!("{PATH}/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let (client, format) = (global.client(), global.output);
    match command {
        Command::Create { name, address, interface, gateway, dns, nfs } => {
            let request = NasServerCreate { name, address, gateway, interface, dns, nfs };
            let server: NasServer = talk(client.call(Method::POST, PATH, Some(&request)))?;
            show(format, &server, |server| {
                let (name, address) = (&server.name, &server.address);
                format!(
                    "NAS server {name} has address {address}; next: ashlar nas fs create NAME --size SIZE --server {name}"
                )
            })?;
        }
        Command::List => {
            let all: Vec<NasServer> = talk(client.get(PATH))?;
            show(format, &all, |all| list(all))?;
        }
        Command::Show { name } => {
            let server: NasServer = talk(client.get(&path(&name)))?;
            show(format, &server, describe)?;
        }
        Command::Restart { name } => {
            let server: NasServer = talk(client.send(Method::POST, &format!("{}/restart", path(&name))))?;
            show(format, &server, |server| format!("NAS server {} is {}", server.name, server.state))?;
        }
        Command::Delete { name } => {
            talk(client.send::<()>(Method::DELETE, &path(&name)))?;
            done(format, "NAS server", &name, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

fn list(all: &[NasServer]) -> String {
    if all.is_empty() {
        return "no NAS servers; make one with `ashlar nas server create NAME --address ADDRESS/PREFIX --interface INTERFACE`"
            .into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("ADDRESS", Align::Left),
        ("INTERFACE", Align::Left),
        ("NFS", Align::Left),
        ("EXPORTS", Align::Right),
        ("FILE SYSTEMS", Align::Left),
    ]);
    for server in all {
        table.row([
            server.name.clone(),
            server.state.to_string(),
            server.address.clone(),
            server.interface.clone().unwrap_or_else(|| "-".into()),
            versions(server),
            server.exports.to_string(),
            if server.file_systems.is_empty() { "-".into() } else { server.file_systems.join(" ") },
        ]);
    }
    table.render(0)
}

fn versions(server: &NasServer) -> String {
    server.nfs.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
}

fn describe(server: &NasServer) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![
        ("name", server.name.clone()),
        ("state", server.state.to_string()),
        ("address", server.address.clone()),
        ("interface", or_none(&server.interface)),
        ("gateway", or_none(&server.gateway)),
        ("name servers", if server.dns.is_empty() { "-".into() } else { server.dns.join(" ") }),
        ("nfs", versions(server)),
        ("file systems", server.file_systems.join(" ")),
        ("exports", server.exports.to_string()),
        ("its own state", server.state_file_system.clone()),
        ("namespace", server.namespace.clone()),
        ("created", timestamp(server.created_s)),
    ];
    if let Some(error) = &server.error {
        rows.push(("error", error.clone()));
    }
    let mut text = pairs(&rows, 0);
    if server.services.is_empty() {
        return text;
    }
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("STATE", Align::Left),
        ("PROCESS", Align::Right),
        ("RESTARTS", Align::Right),
        ("SINCE", Align::Left),
        ("LOG", Align::Left),
    ]);
    for service in &server.services {
        table.row([
            service.name.clone(),
            service.state.clone(),
            service.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            service.restarts.to_string(),
            service.since_s.map_or_else(|| "-".into(), timestamp),
            service.log.clone(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::servers::{ServerService, ServerState};

    #[test]
    fn servers_are_shown() {
        let server = NasServer {
            name: "files".into(),
            state: ServerState::Starting,
            address: "10.0.0.5/24".into(),
            gateway: None,
            interface: None,
            dns: Vec::new(),
            nfs: vec![3, 4],
            file_systems: vec!["home".into(), "work".into()],
            state_file_system: "files.nas".into(),
            exports: 2,
            namespace: "ashlar-1-files".into(),
            services: vec![ServerService {
                name: "nfs".into(),
                state: "starting".into(),
                pid: Some(7),
                restarts: 3,
                since_s: None,
                log: "/var/log/x".into(),
                error: None,
            }],
            created_s: 0,
            error: Some("no room".into()),
        };
        let text = list(std::slice::from_ref(&server));
        assert!(text.contains("starting") && text.contains("3,4") && text.contains("home work"), "{text}");
        let text = describe(&server);
        assert!(text.contains("no room") && text.contains("/var/log/x"), "{text}");
        assert!(list(&[]).contains("nas server create"));
    }
}

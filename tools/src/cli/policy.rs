//! `ashlar policy`.

use hyper::Method;

use super::Global;
use super::volume::done;
use crate::client::{Client, segment};
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, pairs, show};
use crate::wire::Volume;
use crate::wire::protection::{Group, GroupChange, Policy, PolicyChoice, PolicySpec};
use crate::wire::snapshots::Snapshot;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a protection policy of rules; volumes and groups that have it get snapshots by all of them
    #[command(
        after_help = "Examples:\n  ashlar policy create gold --rules hourly nightly vault\n  ashlar policy assign gold --volume data --group db"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 63
        name: String,
        /// Its rules
        #[arg(long, required = true, num_args = 1.., value_name = "RULE")]
        rules: Vec<String>,
    },
    /// All policies
    #[command(visible_alias = "ls")]
    List,
    /// One policy in full
    Show {
        /// The policy
        name: String,
    },
    /// Change a policy's rules or name
    Set {
        /// The policy
        name: String,
        /// All rules it is to have
        #[arg(long, num_args = 1.., value_name = "RULE")]
        rules: Vec<String>,
        /// A new name
        #[arg(long)]
        rename: Option<String>,
    },
    /// Delete a policy that nothing has
    #[command(visible_alias = "rm")]
    Delete {
        /// The policy
        name: String,
    },
    /// Give volumes and groups a policy, in place of the one they have
    #[command(after_help = "Example:\n  ashlar policy assign gold --volume data --group db")]
    Assign {
        /// The policy
        name: String,
        #[command(flatten)]
        to: Targets,
    },
    /// Take the policy from volumes and groups; their snapshots stay until they expire
    Unassign {
        #[command(flatten)]
        from: Targets,
    },
    /// Take snapshots by all rules of a policy now
    Run {
        /// The policy
        name: String,
    },
}

/// Volumes and groups.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Targets {
    /// Volumes
    #[arg(long = "volume", num_args = 1.., value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Groups
    #[arg(long = "group", num_args = 1.., value_name = "GROUP")]
    groups: Vec<String>,
}

impl Targets {
    /// Gives all of them a policy, or none, one after another.
    async fn choose(&self, client: &Client, policy: Option<&str>) -> CommandResult<()> {
        let choice = PolicyChoice { policy: policy.map(str::to_owned) };
        for name in &self.volumes {
            let to = format!("/v1/volumes/{}/policy", segment(name));
            client.call::<Volume>(Method::PUT, &to, Some(&choice)).await?;
        }
        for name in &self.groups {
            let change = GroupChange { policy: Some(choice.clone()), ..GroupChange::default() };
            client.call::<Group>(Method::PATCH, &format!("/v1/groups/{}", segment(name)), Some(&change)).await?;
        }
        Ok(())
    }

    fn words(&self) -> String {
        let volumes = self.volumes.iter().map(|v| format!("volume {v}"));
        volumes.chain(self.groups.iter().map(|g| format!("group {g}"))).collect::<Vec<_>>().join(", ")
    }
}

fn path(name: &str) -> String {
    format!("/v1/policies/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    match command {
        Command::Create { name, rules } => {
            let spec = PolicySpec { name, rules };
            let policy: Policy = super::talk(client.call(Method::POST, "/v1/policies", Some(&spec)))?;
            show(format, &policy, |p| format!("policy {} created: {}", p.spec.name, p.spec.rules.join(" ")))?;
        }
        Command::List => {
            let policies: Vec<Policy> = super::talk(client.get("/v1/policies"))?;
            show(format, &policies, |all| list(all))?;
        }
        Command::Show { name } => {
            let policy: Policy = super::talk(client.get(&path(&name)))?;
            show(format, &policy, describe)?;
        }
        Command::Set { name, rules, rename } => {
            if rules.is_empty() && rename.is_none() {
                return Err(Failure::usage("say what is to change: --rules, --rename, or both"));
            }
            let policy = super::talk(async {
                let now: Policy = client.get(&path(&name)).await?;
                let rules = if rules.is_empty() { now.spec.rules } else { rules };
                let spec = PolicySpec { name: rename.unwrap_or(now.spec.name), rules };
                client.call::<Policy>(Method::PUT, &path(&name), Some(&spec)).await
            })?;
            show(format, &policy, |p| format!("policy {}: {}", p.spec.name, p.spec.rules.join(" ")))?;
        }
        Command::Delete { name } => {
            super::talk(client.send::<()>(Method::DELETE, &path(&name)))?;
            done(format, "policy", &name, "deleted")?;
        }
        Command::Assign { name, to } => {
            super::talk(to.choose(&client, Some(&name)))?;
            done(format, "policy", &name, &format!("assigned to {}", to.words()))?;
        }
        Command::Unassign { from } => {
            super::talk(from.choose(&client, None))?;
            done(format, "policy", "", &format!("taken from {}", from.words()))?;
        }
        Command::Run { name } => {
            let to = format!("{}/run", path(&name));
            let taken: Vec<Snapshot> = super::talk(client.call::<Vec<Snapshot>>(Method::POST, &to, None::<&()>))?;
            show(format, &taken, |all| match all.is_empty() {
                true => {
                    format!("nothing has policy {name}: assign it with `ashlar policy assign {name} --volume VOLUME`")
                }
                false => all.iter().map(|s| format!("snapshot {} taken", s.info.name)).collect::<Vec<_>>().join("\n"),
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn users(policy: &Policy) -> String {
    let volumes = policy.volumes.iter().cloned();
    let all: Vec<String> = volumes.chain(policy.groups.iter().map(|g| format!("group:{g}"))).collect();
    if all.is_empty() { "-".into() } else { all.join(" ") }
}

fn list(policies: &[Policy]) -> String {
    if policies.is_empty() {
        return "no policies; make one with `ashlar policy create NAME --rules RULE…`".into();
    }
    let mut table = Table::new(&[("NAME", Align::Left), ("RULES", Align::Left), ("PROTECTS", Align::Left)]);
    for p in policies {
        table.row([p.spec.name.clone(), p.spec.rules.join(" "), users(p)]);
    }
    table.render(0)
}

fn describe(policy: &Policy) -> String {
    let words = |all: &[String]| if all.is_empty() { "-".into() } else { all.join(" ") };
    pairs(
        &[
            ("name", policy.spec.name.clone()),
            ("rules", policy.spec.rules.join(" ")),
            ("volumes", words(&policy.volumes)),
            ("groups", words(&policy.groups)),
        ],
        0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_listed() {
        let spec = PolicySpec { name: "gold".into(), rules: vec!["hourly".into(), "nightly".into()] };
        let policy = Policy { spec, volumes: vec!["data".into()], groups: vec!["db".into()] };
        let text = list(std::slice::from_ref(&policy));
        assert_eq!(text.lines().nth(1), Some("gold  hourly nightly  data group:db"), "{text}");
        assert!(describe(&policy).contains("groups:   db"));
        assert!(list(&[]).contains("policy create"));
    }
}

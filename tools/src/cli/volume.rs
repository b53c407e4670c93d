//! `ashlar volume`.

use blockdev::report::Changes;
use hyper::Method;

use super::Global;
use crate::client::{Client, segment};
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Format, Table, pairs, ratio, say, say_json, show, size, timestamp};
use crate::values::{parse_size, parse_volume_name, parse_volume_size};
use crate::wire::snapshots::{CloneCreate, Keep, VolumeRefresh, VolumeRestore};
use crate::wire::{AttachRequest, Attachment, Reserved, Via, Volume, VolumeCreate, VolumeReserve, VolumeResize};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a thin volume: it takes space as it is written
    ///
    /// Sizes are binary (10G = 10 GiB), multiples of 4 KiB, at most 256 TiB; the sum may exceed the pool.
    #[command(
        after_help = "Examples:\n  ashlar volume create data --size 10G\n  ashlar volume create big --size 1.5TiB -o json\n  ashlar volume create db --size 100G --reserve all   # nobody else can take its space"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 63
        #[arg(value_parser = parse_volume_name)]
        name: String,
        /// Size hosts see, such as 10G
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
        /// Space that others cannot take: a size, or `all`; see `volume reserve`
        #[arg(long, value_parser = parse_reserved, value_name = "SIZE|all")]
        reserve: Option<Reserved>,
    },
    /// Reserve space for a volume: it can be written and overwritten, whatever others write
    ///
    /// Space is set aside for what has not been written, and for what sharing and compression save now, since what replaces it may not shrink. A
    /// snapshot holds what was written: after it the whole reservation is set aside anew, and where there is no room for that the snapshot is refused.
    #[command(
        after_help = "Examples:\n  ashlar volume reserve db all\n  ashlar volume reserve db 20G\n  ashlar volume reserve db none"
    )]
    Reserve {
        /// The volume
        name: String,
        /// A size, `all` (whatever size the volume has), or `none`
        #[arg(value_parser = parse_reserved, value_name = "SIZE|all|none")]
        reserved: Reserved,
    },
    /// All volumes: size, space taken, where they are attached
    #[command(visible_alias = "ls", after_help = "Example:\n  ashlar volume list -o json | jq -r '.[].name'")]
    List,
    /// One volume in full
    Show {
        /// The volume
        name: String,
    },
    /// Change a volume's size, also while it is in use
    #[command(
        after_help = "Examples:\n  ashlar volume resize data --size 20G\n  ashlar volume resize data --size +5G\n  ashlar volume resize data --size 5G --shrink   # data beyond 5 GiB is lost"
    )]
    Resize {
        /// The volume
        name: String,
        /// New size; +SIZE adds
        #[arg(long, value_parser = parse_new_size)]
        size: NewSize,
        /// Allow the volume to become smaller: data beyond the new end is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Delete a volume and its data
    #[command(
        visible_alias = "rm",
        after_help = "An attached volume must be detached first. Volumes that were cloned from its snapshots stay."
    )]
    Delete {
        /// The volume
        name: String,
        /// Delete its snapshots, too
        #[arg(long)]
        with_snapshots: bool,
    },
    /// Make a volume that begins with what a snapshot holds; it takes space as it changes
    #[command(after_help = "Example:\n  ashlar volume clone data@monday test")]
    Clone {
        /// The snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// Name of the new volume
        #[arg(value_parser = parse_volume_name)]
        name: String,
    },
    /// Give a volume the content, and the size, that a snapshot of it holds
    ///
    /// The volume must be unmounted on its hosts and detached. What it is now becomes a snapshot itself, unless it is to go.
    #[command(
        after_help = "Examples:\n  ashlar volume restore data@monday\n  ashlar volume restore data@monday --keep before-monday\n  ashlar volume restore data@monday --volume test    # a clone of data"
    )]
    Restore {
        /// The snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// The volume, if the snapshot is of another one that it has a common ancestor with
        #[arg(long)]
        volume: Option<String>,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Give a volume the content that a related one has now: a clone that of its parent, or the other way round
    ///
    /// The volume must be unmounted on its hosts and detached. What it is now becomes a snapshot, unless it is to go.
    #[command(
        after_help = "Examples:\n  ashlar volume refresh test --from data\n  ashlar volume refresh test --from data@monday --no-keep"
    )]
    Refresh {
        /// The volume that changes
        name: String,
        /// The volume or snapshot whose content it takes
        #[arg(long)]
        from: String,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Where two of a volume and its snapshots and clones differ; costs as much as was changed, not as they are large
    ///
    /// A block that was written again with what it held may be among the changes. NBD clients ask for the same: metadata contexts
    /// `ashlar:changed-since:SNAPSHOT` and `qemu:dirty-bitmap:SNAPSHOT` of the volume's export.
    #[command(
        after_help = "Examples:\n  ashlar volume diff data@monday data@tuesday\n  ashlar volume diff data@monday data -o json | jq '[.ranges[].len] | add'"
    )]
    Diff {
        /// The older one, VOLUME or VOLUME@SNAPSHOT
        older: String,
        /// The newer one
        newer: String,
    },
    /// Present a volume: prints the URI, the path, or the device
    ///
    /// A volume is presented by one protocol at a time, until it is detached; restarts of the daemon do not matter.
    #[command(
        after_help = "Examples:\n  ashlar volume attach data --via nbd            # nbd+unix:///data?socket=…\n  nbdinfo \"$(ashlar volume attach data --via nbd)\"\n  ashlar volume attach data --via fuse           # a file\n  ashlar volume attach data --via fuse --loop    # /dev/loopN; needs root\n  ashlar volume attach data --via ublk           # /dev/ublkbN and /dev/ashlar/data; needs root and Linux 6.0\n  ashlar volume attach data@monday --via nbd     # read-only\n  ashlar volume attach data@monday --via nbd --writable-as trial   # a thin clone of it that can be written"
    )]
    Attach {
        /// The volume, or VOLUME@SNAPSHOT
        name: String,
        /// By which protocol
        #[arg(long, value_enum)]
        via: Via,
        /// With fuse: also set a loop device with direct I/O up on the file
        #[arg(long = "loop")]
        loop_device: bool,
        /// Of a snapshot: clone it to a volume of this name and present that; the snapshot stays as it is, and the clone takes space as it changes
        #[arg(long, value_name = "NAME", value_parser = parse_volume_name)]
        writable_as: Option<String>,
    },
    /// End the presentation of a volume
    #[command(after_help = "A file system on the volume must be unmounted first.")]
    Detach {
        /// The volume
        name: String,
    },
}

/// All that differs, however many answers it takes.
async fn changes(client: &Client, older: &str, newer: &str) -> CommandResult<Changes> {
    let mut all = Changes::default();
    let mut offset = 0;
    loop {
        let query = format!("changes?since={}&offset={offset}", segment(older));
        let part: Changes = client.get(&format!("{}/{query}", path(newer))).await?;
        all.size = part.size;
        all.ranges.extend(part.ranges);
        match part.next {
            Some(next) => offset = next,
            None => return Ok(all),
        }
    }
}

fn differences(changes: &Changes) -> String {
    let mut table = Table::new(&[("OFFSET", Align::Right), ("LENGTH", Align::Right), ("NOW", Align::Left)]);
    for r in &changes.ranges {
        let now = if r.mapped { "data" } else { "zeroes" };
        table.row([r.offset.to_string(), r.len.to_string(), now.to_owned()]);
    }
    let bytes: u64 = changes.ranges.iter().map(|r| r.len).sum();
    let total = format!("{} ranges, {} of {}", changes.ranges.len(), size(bytes), size(changes.size));
    if changes.ranges.is_empty() { total } else { format!("{}\n{total}", table.render(0)) }
}

/// What becomes of the present content.
#[derive(Debug, clap::Args)]
pub struct KeepArguments {
    /// Name of the snapshot that keeps what the volume is now
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "no_keep")]
    keep: Option<String>,
    /// Give back what the volume is now
    #[arg(long)]
    no_keep: bool,
}

impl KeepArguments {
    pub fn wanted(self) -> Keep {
        match (self.keep, self.no_keep) {
            (Some(name), _) => Keep::As(name),
            (None, true) => Keep::Nothing,
            (None, false) => Keep::Named,
        }
    }
}

/// A size, or one to add to the present one; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    To(u64),
    By(u64),
}

fn parse_reserved(text: &str) -> blockdev::error::Result<Reserved> {
    match text {
        "all" => Ok(Reserved::All),
        "none" => Ok(Reserved::Bytes(0)),
        size => parse_volume_size(size).map(Reserved::Bytes),
    }
}

fn parse_new_size(text: &str) -> blockdev::error::Result<NewSize> {
    match text.strip_prefix('+') {
        Some(more) => parse_size(more).map(NewSize::By),
        None => parse_volume_size(text).map(NewSize::To),
    }
}

/// Makes a volume that begins as a snapshot.
async fn clone(client: &Client, snapshot: &str, name: String) -> CommandResult<Volume> {
    let to = format!("/v1/snapshots/{}/clones", segment(snapshot));
    client.call(Method::POST, &to, Some(&CloneCreate { name })).await
}

/// Presents a volume, or a clone of a snapshot that is made for it. One that cannot be presented does not stay.
async fn attach(
    client: &Client,
    name: &str,
    request: AttachRequest,
    writable_as: Option<String>,
) -> CommandResult<Attachment> {
    let Some(own) = writable_as else {
        return client.call(Method::PUT, &format!("{}/attachment", path(name)), Some(&request)).await;
    };
    clone(client, name, own.clone()).await?;
    let attached = client.call(Method::PUT, &format!("{}/attachment", path(&own)), Some(&request)).await;
    if attached.is_err() {
        // Why it cannot be presented is what is to be told.
        let _ = client.send::<()>(Method::DELETE, &path(&own)).await;
    }
    attached
}

fn path(name: &str) -> String {
    format!("/v1/volumes/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    match command {
        Command::Create { name, size: bytes, reserve } => {
            let request = VolumeCreate { name, size: bytes, reserved: reserve };
            let volume: Volume = super::talk(client.call(Method::POST, "/v1/volumes", Some(&request)))?;
            show(format, &volume, |v| {
                let reserved = match v.info.reserved {
                    0 => String::new(),
                    reserved => format!(", {} of it reserved", size(reserved)),
                };
                format!("volume {} created: {}, thin{reserved}", v.info.name, size(v.info.size))
            })?;
        }
        Command::Reserve { name, reserved } => {
            let (to, request) = (format!("{}/reservation", path(&name)), VolumeReserve { reserved });
            let volume: Volume = super::talk(client.call(Method::PUT, &to, Some(&request)))?;
            show(format, &volume, |v| format!("{} are reserved for volume {}", size(v.info.reserved), v.info.name))?;
        }
        Command::List => {
            let volumes: Vec<Volume> = super::talk(client.get("/v1/volumes"))?;
            show(format, &volumes, |all| list(all))?;
        }
        Command::Show { name } => {
            let volume: Volume = super::talk(client.get(&path(&name)))?;
            show(format, &volume, describe)?;
        }
        Command::Resize { name, size: wanted, shrink } => {
            let volume = super::talk(async {
                let bytes = match wanted {
                    NewSize::To(bytes) => bytes,
                    NewSize::By(more) => {
                        let volume: Volume = client.get(&path(&name)).await?;
                        volume.info.size.saturating_add(more)
                    }
                };
                let request = VolumeResize { size: bytes, shrink };
                client.call::<Volume>(Method::PATCH, &path(&name), Some(&request)).await
            })?;
            show(format, &volume, |v| format!("volume {} has {} now", v.info.name, size(v.info.size)))?;
        }
        Command::Delete { name, with_snapshots } => {
            let query = if with_snapshots { "?snapshots=true" } else { "" };
            super::talk(client.send::<()>(Method::DELETE, &format!("{}{query}", path(&name))))?;
            done(format, "volume", &name, "deleted")?;
        }
        Command::Clone { snapshot, name } => {
            let volume = super::talk(clone(&client, &snapshot, name))?;
            show(format, &volume, |v| format!("volume {} cloned from {snapshot}", v.info.name))?;
        }
        Command::Restore { snapshot, volume, keep } => {
            let own = || snapshot.split_once('@').map_or(snapshot.clone(), |(volume, _)| volume.to_owned());
            let to = format!("{}/restore", path(&volume.unwrap_or_else(own)));
            let request = VolumeRestore { snapshot: snapshot.clone(), keep: keep.wanted() };
            let volume: Volume = super::talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &volume, |v| format!("volume {} is what {snapshot} holds", v.info.name))?;
        }
        Command::Refresh { name, from, keep } => {
            let request = VolumeRefresh { from: from.clone(), keep: keep.wanted() };
            let to = format!("{}/refresh", path(&name));
            let volume: Volume = super::talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &volume, |v| format!("volume {} is what {from} holds", v.info.name))?;
        }
        Command::Diff { older, newer } => {
            let changes = super::talk(changes(&client, &older, &newer))?;
            show(format, &changes, differences)?;
        }
        Command::Attach { name, via, loop_device, writable_as } => {
            let request = AttachRequest { via, loop_device };
            let attachment = super::talk(attach(&client, &name, request, writable_as))?;
            show(format, &attachment, |a| a.target().to_owned())?;
        }
        Command::Detach { name } => {
            super::talk(client.send::<()>(Method::DELETE, &format!("{}/attachment", path(&name))))?;
            done(format, "volume", &name, "detached")?;
        }
    }
    Ok(Exit::Ok)
}

/// Tells that something was done to an object that has nothing to show for it.
pub fn done(format: Format, object: &str, name: &str, what: &str) -> CommandResult {
    match format {
        Format::Json => say_json(&serde_json::json!({ object: name, "result": what })),
        Format::Table => say(format!("{object} {name} {what}")),
    }
}

/// How much less space the data of a volume takes than it shows.
fn reduction(volume: &Volume) -> Option<f64> {
    let savings = volume.info.savings?;
    let kept = volume.info.mapped.checked_sub(savings)?;
    (volume.info.mapped > 0 && kept > 0).then(|| volume.info.mapped as f64 / kept as f64)
}

/// A size that is counted, or `~` and what it is about.
fn counted_size(volume: &Volume, bytes: Option<u64>) -> String {
    let about = if volume.info.estimated { "~" } else { "" };
    bytes.map_or_else(|| "-".into(), |bytes| format!("{about}{}", size(bytes)))
}

/// `nbd`, or `nbd (failed)`.
fn attached_word(volume: &Volume) -> String {
    match &volume.attachment {
        None => "-".into(),
        Some(a) if a.error.is_some() => format!("{} (failed)", a.via),
        Some(a) => a.via.to_string(),
    }
}

fn list(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "no volumes; make one with `ashlar volume create NAME --size 10G`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("MAPPED", Align::Right),
        ("UNIQUE", Align::Right),
        ("SAVINGS", Align::Right),
        ("REDUCTION", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("STATE", Align::Left),
        ("ATTACHED", Align::Left),
        ("AT", Align::Left),
    ]);
    for volume in volumes {
        table.row([
            volume.info.name.clone(),
            size(volume.info.size),
            size(volume.info.mapped),
            counted_size(volume, volume.info.unique),
            counted_size(volume, volume.info.savings),
            ratio(reduction(volume)),
            volume.info.snapshots.to_string(),
            volume.info.state.clone(),
            attached_word(volume),
            volume.attachment.as_ref().map_or("-", |a| a.target()).to_owned(),
        ]);
    }
    table.render(0)
}

fn describe(volume: &Volume) -> String {
    let info = &volume.info;
    let mut lines = vec![
        ("name", info.name.clone()),
        ("id", info.id.to_string()),
        ("state", info.state.clone()),
        ("size", format!("{} ({} bytes)", size(info.size), info.size)),
        ("mapped", size(info.mapped)),
        ("reserved", if info.reserved > 0 { size(info.reserved) } else { "nothing".into() }),
        ("unique", counted_size(volume, info.unique)),
        ("savings", counted_size(volume, info.savings)),
        ("reduction", ratio(reduction(volume))),
        ("created", timestamp(info.created_s)),
        ("snapshots", info.snapshots.to_string()),
        ("group", volume.group.clone().unwrap_or_else(|| "-".into())),
        ("policy", volume.policy.clone().unwrap_or_else(|| "-".into())),
        ("origin", info.origin.clone().unwrap_or_else(|| "-".into())),
        ("attached", attached_word(volume)),
    ];
    if let Some(attachment) = &volume.attachment {
        lines.extend(attachment.uris.iter().map(|uri| ("uri", uri.clone())));
        lines.extend(attachment.path.iter().map(|path| ("path", path.clone())));
        lines.extend(attachment.device.iter().map(|device| ("device", device.clone())));
        lines.extend(attachment.error.iter().map(|error| ("problem", error.clone())));
    }
    pairs(&lines, 0)
}

#[cfg(test)]
mod tests {
    use blockdev::report::VolumeInfo;

    use super::*;

    fn volume(name: &str) -> Volume {
        let info = VolumeInfo {
            name: name.into(),
            id: 3,
            size: 10 << 30,
            mapped: 4 << 30,
            reserved: 0,
            unique: Some(1 << 30),
            savings: Some(3 << 30),
            estimated: false,
            attached: None,
            state: "online".into(),
            created_s: 0,
            snapshots: 2,
            origin: None,
            group_id: 0,
            policy_id: 0,
        };
        Volume::new(info)
    }

    #[test]
    fn volumes_are_listed() {
        let mut attached = volume("b");
        attached.attachment = Some(Attachment {
            volume: "b".into(),
            via: Via::Nbd,
            uri: Some("nbd://x/b".into()),
            uris: vec!["nbd://x/b".into()],
            path: None,
            device: None,
            error: None,
        });
        let text = list(&[volume("a"), attached.clone()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "NAME    SIZE  MAPPED  UNIQUE  SAVINGS  REDUCTION  SNAPSHOTS  STATE   ATTACHED  AT");
        assert_eq!(lines[1], "a     10 GiB   4 GiB   1 GiB    3 GiB     4.00:1          2  online  -         -");
        assert_eq!(
            lines[2],
            "b     10 GiB   4 GiB   1 GiB    3 GiB     4.00:1          2  online  nbd       nbd://x/b"
        );
        assert!(list(&[]).contains("volume create"));
        assert!(describe(&attached).contains("uri:        nbd://x/b\n"), "{}", describe(&attached));
        attached.info.estimated = true;
        assert!(describe(&attached).contains("unique:     ~1 GiB\n"), "{}", describe(&attached));
        attached.info.savings = Some(4 << 30);
        assert_eq!(reduction(&attached), None);
    }

    #[test]
    fn new_sizes_are_absolute_or_more() {
        assert_eq!(parse_new_size("+1G").unwrap(), NewSize::By(1 << 30));
        assert_eq!(parse_new_size("1G").unwrap(), NewSize::To(1 << 30));
        assert!(parse_new_size("-1G").is_err());
        assert!(parse_new_size("++1G").is_err());
    }
}

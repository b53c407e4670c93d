use super::*;

const MACHINE: Machine = Machine { ram: 16 << 30, cores: 6 };

fn load(dir: &Path, text: &str, flags: &Flags, env: &[(&str, &str)]) -> Result<Config> {
    std::fs::write(dir.join(FILE_NAME), text).unwrap();
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    Config::load(&Sources { dir: Some(dir), file: None, flags, env: &env, machine: MACHINE })
}

fn origin<'a>(rows: &'a [ConfigRow], key: &str) -> &'a ConfigRow {
    rows.iter().find(|r| r.key == key).unwrap()
}

#[test]
fn later_sources_win_and_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = "disks = ['disks/a.img', '/dev/sdx']\nmemory = '1G'\n[log]\nfilter = 'debug'\n";
    let config = load(dir.path(), text, &Flags::default(), &[]).unwrap();
    assert_eq!(config.memory.value, 1 << 30);
    assert_eq!(config.disks.value, [dir.path().join("disks/a.img"), PathBuf::from("/dev/sdx")]);
    assert_eq!(config.socket.value, dir.path().join("run/api.sock"));
    assert_eq!(config.fuse_mountpoint.value, dir.path().join("mnt"));
    assert_eq!(config.threads.value, 6);

    let env = [("ASHLAR_MEMORY", "2G"), ("ASHLAR_LOG", "warn")];
    let config = load(dir.path(), text, &Flags::default(), &env).unwrap();
    assert_eq!((config.memory.value, config.log_filter.value.as_str()), (2 << 30, "warn"));

    let flags = Flags { memory: Some("3G".into()), ..Flags::default() };
    let config = load(dir.path(), text, &flags, &env).unwrap();
    assert_eq!(config.memory.value, 3 << 30);
    let rows = config.rows();
    assert_eq!(origin(&rows, "memory").origin, "flag --memory");
    assert_eq!(origin(&rows, "memory").value, "3 GiB");
    assert_eq!(origin(&rows, "log.filter").origin, "env ASHLAR_LOG");
    assert_eq!(origin(&rows, "disks").origin, format!("file {}", dir.path().join(FILE_NAME).display()));
    assert_eq!(origin(&rows, "compression").origin, "default");
}

#[test]
fn memory_follows_the_machine() {
    let memory = |ram| Machine { ram, cores: 1 }.memory();
    assert_eq!(memory(512 << 20), 256 << 20);
    assert_eq!(memory(16 << 30), 4 << 30);
    assert_eq!(memory(512 << 30), 8 << 30);
    assert!(Machine::here().ram > 0 && Machine::here().cores > 0);
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("", "no disks"),
        ("disks = []", "no disks"),
        ("disk = ['a']", "unknown field `disk`"),
        ("disks = 'a'", "disks"),
        ("disks = ['a']\nmemory = '1M'", "256 MiB"),
        ("disks = ['a']\nmemory = 'lots'", "not a size"),
        ("disks = ['a']\ncompression = 'zip'", "zip"),
        ("disks = ['a']\nthreads = 0", "1 to 1024"),
        ("disks = ['a']\nname = '../x'", "cannot be the name"),
        ("disks = ['a']\n[nbd]\nlisten = 'here'", "listen"),
        ("disks = ['a']\n[nbd]\ntls_cert = 'c.pem'", "go together"),
        ("disks = ['a']\n[nbd]\ntls_ca = 'c.pem'", "needs nbd.tls_cert"),
        ("disks = ['a']\n[log]\nfilter = 'a=b=c'", "log filter"),
        ("disks = [", "configuration file"),
    ];
    for (text, expected) in cases {
        let error = load(dir.path(), text, &Flags::default(), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} gave {error:?}");
    }
    let long = format!("disks = ['a']\nsocket = '/{}'", "s".repeat(120));
    assert!(load(dir.path(), &long, &Flags::default(), &[]).unwrap_err().to_string().contains("107"));
}

#[test]
fn a_missing_file_is_told() {
    let flags = Flags::default();
    let sources =
        Sources { dir: Some(Path::new("/nonexistent")), file: None, flags: &flags, env: &|_| None, machine: MACHINE };
    let error = Config::load(&sources).unwrap_err();
    assert_eq!(error.kind(), blockdev::error::ErrorKind::NotFound);
    let sources = Sources { dir: None, ..sources };
    assert_eq!(Config::load(&sources).unwrap_err().kind(), blockdev::error::ErrorKind::InvalidArgument);
}

#[test]
fn what_the_lab_writes_can_be_read() {
    let file = File {
        name: Some("lab".into()),
        disks: Some(vec!["disks/disk0.img".into()]),
        lab: Some(true),
        ..File::default()
    };
    let text = toml::to_string(&file).unwrap();
    assert_eq!(toml::from_str::<File>(&text).unwrap(), file);
    assert!(!text.contains("[nbd]"), "{text}");
}

#[test]
fn the_packaged_configuration_names_no_pool_and_shows_what_is_true() {
    let packaged = include_str!("../../../package/ashlar.toml");
    assert_eq!(toml::from_str::<File>(packaged).unwrap(), File::default());
    // Settings that are commented out stand at the beginning of their lines.
    let setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let all: Vec<&str> = packaged.lines().filter(setting).map(|line| &line[1..]).collect();
    let file: File = toml::from_str(&all.join("\n")).unwrap();
    assert!(file.disks.is_some() && file.nbd.tls_ca.is_some() && file.log.filter.is_some(), "{all:?}");
    assert_eq!((file.failed_grace, file.missing_grace, file.scrub_days), (Some(30), Some(300), Some(28)));
}

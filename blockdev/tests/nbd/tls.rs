//! TLS against libnbd and QEMU, with certificates made by openssl.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use blockdev::frontend::BlockDevice as _;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::TlsConfig;
use blockdev::frontend::nbd::wire::{option, option_reply};

use crate::client::{Client, FLAGS, encode_option, info_data};
use crate::lab::{Lab, Setup, now, run, run_any, tool};

const MIB: u64 = 1 << 20;

/// Makes an authority, a certificate for localhost and one for a client, named as libnbd and QEMU want them.
fn certificates(dir: &Path) -> Option<()> {
    tool("openssl")?;
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority"));
    for (name, extension) in
        [("server", "subjectAltName=DNS:localhost,IP:127.0.0.1"), ("client", "keyUsage=digitalSignature")]
    {
        std::fs::write(dir.join("extension"), extension).unwrap();
        openssl(&format!("req {key} -keyout {name}-key.pem -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extension -out {name}-cert.pem"
        ));
    }
    Some(())
}

fn config(dir: &Path, client_ca: bool, required: bool) -> TlsConfig {
    TlsConfig {
        certificate: dir.join("server-cert.pem"),
        key: dir.join("server-key.pem"),
        client_ca: client_ca.then(|| dir.join("ca-cert.pem")),
        required,
    }
}

fn lab(device: &Arc<MemoryDevice>, tls: TlsConfig, tcp: bool) -> Lab {
    Lab::with(&[("vol", device.clone())], Setup { tls: Some(tls), tcp, ..Setup::default() })
}

#[test]
fn copies_over_tls_come_back_and_plain_clients_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (Some(()), Some(mut nbdcopy), Some(mut back), Some(mut plain)) =
        (certificates(dir.path()), tool("nbdcopy"), tool("nbdcopy"), tool("nbdinfo"))
    else {
        return;
    };
    let device = Arc::new(MemoryDevice::new(8 * MIB));
    let lab = lab(&device, config(dir.path(), true, true), true);
    let uri = lab.server.uri("vol").replace("127.0.0.1", "localhost");
    assert!(uri.starts_with("nbds://localhost:"), "{uri}");
    let with_certificates = format!("{uri}?tls-certificates={}", dir.path().display());
    let (there, here) = (dir.path().join("there"), dir.path().join("here"));
    let bytes: Vec<u8> = (0..8 * MIB).map(|i| (i * i / 77) as u8).collect();
    std::fs::write(&there, &bytes).unwrap();
    run(nbdcopy.arg(&there).arg(&with_certificates));
    assert!(now(device.read(0, bytes.len())).unwrap() == bytes);
    run(back.arg(&with_certificates).arg(&here));
    assert!(std::fs::read(&here).unwrap() == bytes);
    let output = run_any(plain.arg(uri.replace("nbds:", "nbd:")));
    assert!(!output.status.success(), "a plain client must not get in");
}

#[test]
fn qemu_needs_a_certificate_where_an_authority_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let (Some(()), Some(mut good), Some(mut bad)) = (certificates(dir.path()), tool("qemu-io"), tool("qemu-io")) else {
        return;
    };
    let device = Arc::new(MemoryDevice::new(MIB));
    let lab = lab(&device, config(dir.path(), true, false), true);
    let port = lab.server.uri("").rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let image = format!("driver=nbd,server.type=inet,server.host=localhost,server.port={port},export=vol,tls-creds=t");
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", dir.path().display());
    run(good.args([
        "--object",
        &credentials,
        "--image-opts",
        &image,
        "-c",
        "write -P 7 4k 8k",
        "-c",
        "read -P 7 4k 8k",
    ]));
    assert_eq!(now(device.read(4096, 8192)).unwrap(), vec![7; 8192]);
    let poor = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("ca-cert.pem"), poor.path().join("ca-cert.pem")).unwrap();
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", poor.path().display());
    let output = run_any(bad.args(["--object", &credentials, "--image-opts", &image, "-c", "write -P 9 4k 8k"]));
    assert_eq!(now(device.read(4096, 8192)).unwrap(), vec![7; 8192], "{output:?}");
}

#[test]
fn required_tls_refuses_everything_else_and_plain_bytes_behind_starttls_end_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let Some(()) = certificates(dir.path()) else { return };
    let device = Arc::new(MemoryDevice::new(MIB));
    let lab = lab(&device, config(dir.path(), false, true), false);
    assert!(lab.server.uri("vol").starts_with("nbds+unix:///vol?socket=/"));
    let mut client = Client::connect(&lab.socket(), FLAGS);
    assert_eq!(client.option_kind(option::LIST, &[]), option_reply::ERR_TLS_REQD);
    assert_eq!(client.option_kind(option::GO, &info_data("vol", &[])), option_reply::ERR_TLS_REQD);
    assert_eq!(client.option_kind(99, &[]), option_reply::ERR_TLS_REQD);
    assert_eq!(client.option_kind(option::STARTTLS, b"x"), option_reply::ERR_INVALID);
    assert_eq!(client.option_kind(option::ABORT, &[]), option_reply::ACK);
    let mut client = Client::connect(&lab.socket(), FLAGS);
    std::io::Write::write_all(&mut client.stream, &encode_option(option::EXPORT_NAME, b"vol")).unwrap();
    assert!(client.is_closed());
    let mut client = Client::connect(&lab.socket(), FLAGS);
    let injected = [encode_option(option::STARTTLS, &[]), encode_option(option::LIST, &[])].concat();
    std::io::Write::write_all(&mut client.stream, &injected).unwrap();
    assert!(client.is_closed());
    let mut client = Client::connect(&lab.socket(), FLAGS);
    assert_eq!(client.option_kind(option::STARTTLS, &[]), option_reply::ACK);
    std::io::Write::write_all(&mut client.stream, b"this is no TLS record, is it? certainly not").unwrap();
    assert!(client.is_closed());
}

#[test]
fn tcp_uris_lead_to_the_server() {
    let device = Arc::new(MemoryDevice::new(MIB));
    let lab = Lab::with(&[("vol", device)], Setup { tcp: true, ..Setup::default() });
    let uri = lab.server.uri("vol");
    let address = uri.strip_prefix("nbd://").unwrap().strip_suffix("/vol").unwrap();
    TcpStream::connect(address).unwrap();
}

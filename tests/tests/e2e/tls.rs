//! NBD over TCP with certificates, by the daemon's configuration.

use std::io::Write as _;

use ashlar_tests::Lab;
use ashlar_tests::require::{Need, met};

use crate::tools::{SMALL, attach, create, expect_refused, shell};

/// An authority, a server and a client with certificates from it, and another authority with a client of its own.
const CERTIFICATES: &str = "mkdir -p \"$1\"/ours \"$1\"/theirs
    for who in ours theirs; do
        cd \"$1/$who\"
        new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 $new -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority
        for name in server client; do
            openssl req $new -keyout $name-key.pem -out $name.csr -subj /CN=$name
            echo 'subjectAltName=DNS:localhost,IP:127.0.0.1' >extension
            openssl x509 -req -in $name.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extension -out $name-cert.pem
        done
    done
    cp \"$1\"/ours/ca-cert.pem \"$1\"/theirs/";

#[test]
fn only_clients_with_a_certificate_come_in_over_tcp() {
    if !met("only_clients_with_a_certificate_come_in_over_tcp", &["openssl", "nbdcopy", "nbdinfo"].map(Need::Tool)) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    lab.lab("stop", &[]).expect_ok();
    let keys = lab.dir().join("tls").display().to_string();
    shell(CERTIFICATES, &[&keys]).expect_ok();
    let configure = |text: &str| {
        let file = std::fs::File::options().append(true).open(lab.dir().join("ashlar.toml"));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the configuration");
    };
    configure(&format!("\n[nbd]\nlisten = \"127.0.0.1:0\"\ntls_cert = \"{keys}/ours/server-cert.pem\"\n"));
    expect_refused(lab.lab("start", &[]), 2, "nbd.tls_cert and nbd.tls_key go together");
    configure(&format!("tls_key = \"{keys}/ours/server-key.pem\"\ntls_ca = \"{keys}/ours/ca-cert.pem\"\n"));
    lab.lab("start", &[]).expect_ok();
    attach(&lab, "data", &["nbd"]);
    let shown = lab.json(&["volume", "show", "data"]);
    let uri =
        shown.to_string().split('"').find(|s| s.starts_with("nbds://")).unwrap_or_else(|| panic!("{shown}")).to_owned();
    let with = |who: &str| format!("{}?tls-certificates={keys}/{who}", uri.replace("127.0.0.1", "localhost"));
    let copy = "head -c 64M /dev/urandom >\"$1/there\"; nbdcopy \"$1/there\" \"$2\"; nbdcopy \"$2\" \"$1/here\"; cmp \"$1/there\" \"$1/here\"";
    shell(copy, &[&keys, &with("ours")]).expect_ok();
    for uri in [with("theirs"), uri.replace("nbds:", "nbd:"), uri.replace("127.0.0.1", "localhost")] {
        shell("nbdinfo \"$1\"", &[&uri]).expect_failure();
    }
    shell("nbdinfo --size \"$1\"", &[&with("ours")]).expect_ok();
}

//! TLS by certificate files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Result};

/// Files and policy of TLS (1.2 and 1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file with the server's certificate, followed by intermediate ones.
    pub certificate: PathBuf,
    /// PEM file with the private key of the certificate.
    pub key: PathBuf,
    /// PEM file with authorities; with it, a client over TLS must show a certificate that one of them signed.
    pub client_ca: Option<PathBuf>,
    /// Whether clients without TLS are refused. Where it is false, `client_ca` keeps nobody out.
    pub required: bool,
}

impl TlsConfig {
    /// Reads and checks the files.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| unusable("private key", &self.key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::invalid(format!("TLS cannot be set up: {e}")))?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in self::certificates(path)? {
                    roots.add(certificate).map_err(|e| unusable("authority", path, &e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|e| unusable("authority", path, &e))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let config =
            config.with_single_cert(certificates, key).map_err(|e| unusable("certificate", &self.certificate, &e))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unusable("certificate", path, &e))?;
    if found.is_empty() {
        return Err(Error::invalid(format!("{} holds no certificate in PEM form", path.display())));
    }
    Ok(found)
}

fn unusable(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("TLS {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_files_are_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        let config = TlsConfig { certificate: path.clone(), key: path.clone(), client_ca: None, required: true };
        let message = |config: &TlsConfig| config.acceptor().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message(&config).contains("cert.pem"), "{}", message(&config));
        std::fs::write(&path, "not PEM at all").unwrap();
        assert!(message(&config).contains("no certificate"), "{}", message(&config));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        assert!(message(&config).contains("cert.pem"), "{}", message(&config));
    }
}

//! NAS servers: file systems over thin volumes, handed out by NFS, SMB, FTP and SFTP. Not built yet: the crate holds the place.

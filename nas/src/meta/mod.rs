//! What is known of names and files, in a database: its tables ([`tables`]), the attributes of an inode ([`attr`]), and the open transaction
//! that changes are gathered in ([`txn`]).

pub(crate) mod attr;
pub(crate) mod tables;
pub(crate) mod txn;

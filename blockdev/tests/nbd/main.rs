//! The NBD server against real clients (libnbd's tools, QEMU's, fio), against a raw client that says what no tool says,
//! and against garbage.

mod client;
mod conversation;
mod fuzz;
mod lab;
mod misuse;
mod protocol;
mod requests;
#[path = "../../../tests/src/skip.rs"]
mod skip;
mod tls;
mod tools;

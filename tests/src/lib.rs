//! Integration tests of Ashlar; see the folders `sim`, `crash`, `format`, `e2e`, `platform`.

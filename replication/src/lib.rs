//! Replication, migration and import between appliances. Not built yet: the crate holds the place.

//! Storage pools and volumes.

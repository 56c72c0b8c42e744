//! The node: state, journal, jobs and operations over pools and domains.

//! Bad input: damaged log dirs, wrong configurations, full disks and damaged vaults each end in a clear message, and
//! nothing is lost or written half.
//!
//! One real cluster is made and killed; every test works on a copy of its node folders or of a vault with one point of
//! it. Disks that fill up are small file systems in memory, which only root may mount.

#[path = "bad_input/capture.rs"]
mod capture;
#[path = "bad_input/fixture.rs"]
mod fixture;
#[path = "bad_input/plans.rs"]
mod plans;
#[path = "bad_input/restore.rs"]
mod restore;
#[path = "bad_input/vault.rs"]
mod vault;

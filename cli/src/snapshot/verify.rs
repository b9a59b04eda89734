//! `segvault snapshot verify`: reads a whole point and says which level holds.

use std::fmt;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::PointManifest;
use segvault_verifier::{Flaw, LEVEL_MAX, Progress, Proof, verify as prove};
use serde::Serialize;

use crate::args::PointArgs;
use crate::output::{self, Ending};
use crate::{progress, vault};

/// Options of `snapshot verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub point: PointArgs,
    /// The level that is to be proven, L0 to L3 [default: the one that the point states].
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub level: Option<u8>,
}

fn parse_level(text: &str) -> Result<u8> {
    let number = text.strip_prefix(['L', 'l']).unwrap_or(text).parse().ok();
    match number.filter(|level| *level <= LEVEL_MAX) {
        Some(level) => Ok(level),
        None => bail!("levels are L0, L1, L2 and L3"),
    }
}

/// What `snapshot verify` prints.
#[derive(Serialize)]
struct ProofReport {
    /// CLUSTER_ID/NUMBER.
    id: String,
    cluster_id: String,
    number: u64,
    /// `complete` or `degraded`: what a degraded point does not cover is not judged.
    state: &'static str,
    /// The level that the point states.
    level: String,
    /// The level that was asked for.
    wanted: String,
    /// The highest level that holds; absent where not even L0 does.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<String>,
    /// What was asked for is proven.
    ok: bool,
    partitions: usize,
    batches: u64,
    bytes: u64,
    transactional_ids: usize,
    open_transactions: usize,
    offsets: usize,
    offsets_beyond: usize,
    share_partitions: usize,
    share_partitions_beyond: usize,
    flaws: Vec<FlawReport>,
    /// Of all levels together; those beyond a hundred of a level are not in `flaws`.
    flaw_count: u64,
    notes: Vec<String>,
    seconds: f64,
}

#[derive(Serialize)]
struct FlawReport {
    /// The lowest level that promises otherwise.
    level: String,
    place: String,
    what: String,
}

impl From<Flaw> for FlawReport {
    fn from(Flaw { level, place, what }: Flaw) -> Self {
        Self { level: name(level), place, what }
    }
}

fn name(level: u8) -> String {
    format!("L{level}")
}

impl ProofReport {
    fn new(id: &PointId, point: &PointManifest, wanted: u8, proof: Proof, seconds: f64) -> Self {
        Self {
            id: id.to_string(),
            cluster_id: id.cluster_id.clone(),
            number: id.number,
            state: if point.degraded { "degraded" } else { "complete" },
            level: format!("L{}", point.level),
            wanted: name(wanted),
            ok: proof.proven.is_some_and(|proven| proven >= wanted),
            proven: proof.proven.map(name),
            partitions: proof.partitions,
            batches: proof.batches,
            bytes: proof.bytes,
            transactional_ids: proof.transactional_ids,
            open_transactions: proof.open_transactions,
            offsets: proof.offsets,
            offsets_beyond: proof.offsets_beyond,
            share_partitions: proof.share_partitions,
            share_partitions_beyond: proof.share_partitions_beyond,
            flaws: proof.flaws.into_iter().map(FlawReport::from).collect(),
            flaw_count: proof.flaw_counts.values().sum(),
            notes: proof.notes,
            seconds,
        }
    }
}

impl fmt::Display for ProofReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proven = self.proven.as_deref().unwrap_or("NOTHING");
        writeln!(f, "restore point {}: {} at level {}, proven: {proven}", self.id, self.state, self.level)?;
        writeln!(
            f,
            "  {}, {} in {} batches, read in {:.1} s",
            output::count(self.partitions, "partition"),
            output::bytes(self.bytes),
            self.batches,
            self.seconds
        )?;
        writeln!(
            f,
            "  {}, {}, {} ({} beyond the end, set to it by a restore)",
            output::count(self.transactional_ids, "transactional id"),
            output::count(self.open_transactions, "open transaction"),
            output::count(self.offsets, "committed offset"),
            self.offsets_beyond
        )?;
        if self.share_partitions > 0 {
            writeln!(
                f,
                "  {} ({} beyond the end, set to it by a restore)",
                output::count(self.share_partitions, "partition of share groups"),
                self.share_partitions_beyond
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  - {note}"))?;
        for FlawReport { level, place, what } in &self.flaws {
            writeln!(f, "  ! {level} {place}: {what}")?;
        }
        match self.flaw_count.saturating_sub(self.flaws.len() as u64) {
            0 => Ok(()),
            more => writeln!(f, "  ! and {more} more"),
        }
    }
}

/// `segvault snapshot verify`.
pub fn verify(args: &VerifyArgs, json: bool) -> Result<Ending> {
    let runtime = vault::runtime()?;
    let (vault, id, point) = vault::open_point(&args.point, &runtime)?;
    let stated = u8::try_from(point.level).unwrap_or(LEVEL_MAX);
    let began = Instant::now();
    let line = progress::line();
    let proof = prove(&vault, &point, &|Progress { partitions, partitions_total, bytes, bytes_total }| {
        let (bytes, bytes_total) = (output::bytes(bytes), output::bytes(bytes_total));
        line.set_message(format!("verifying: {partitions} of {partitions_total} partitions, {bytes} of {bytes_total}"));
    });
    line.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let report = ProofReport::new(&id, &point, args.level.unwrap_or(stated), proof?, seconds);
    output::print(&report, json)?;
    Ok(Ending::with_findings(!report.ok))
}

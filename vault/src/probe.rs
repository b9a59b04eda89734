//! Does create-if-absent have one winner here?
//!
//! Everything that decides rests on it, and a status code proves nothing: some stores take the condition and ignore
//! it, some refuse a second create that comes later but let several racing ones win. So the store is made to race, on
//! the very bucket and prefix, before anything is written: many creates of one fresh key, then one more.

use futures::future::join_all;
use segvault_vault_format::keys::Key;

use crate::error::VaultError;
use crate::random;
use crate::store::Store;

/// Racing creates when a vault is made.
pub(crate) const INIT_RACERS: u32 = 16;

/// Racing creates when it is opened for writing: its store has passed once, this notices that it was exchanged.
pub(crate) const OPEN_RACERS: u32 = 4;

/// Makes `racers` creates race and wants exactly one winner.
pub(crate) async fn race(store: &Store, racers: u32) -> Result<(), VaultError> {
    let key = Key::Probe(random()?, 0);
    let seen = run(store, &key, racers).await;
    store.delete_probe(&key).await;
    let refused = |why| VaultError::ConditionsIgnored { location: store.location().clone(), why };
    verdict(&seen?).map_err(refused)
}

/// What was seen of a race. Each racer writes its own number.
struct Race {
    racers: u32,
    winners: Vec<u32>,
    content: Option<Vec<u8>>,
    /// One more create, when the race was over, succeeded.
    again: bool,
}

async fn run(store: &Store, key: &Key, racers: u32) -> Result<Race, VaultError> {
    let create = |racer: u32| async move {
        Ok::<_, VaultError>((racer, store.create_probe(key, racer.to_be_bytes().to_vec()).await?))
    };
    let created = join_all((0..racers).map(create)).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let winners = created.into_iter().filter(|(_, created)| *created).map(|(racer, _)| racer).collect();
    let content = store.get_probe(key).await?.map(Vec::from);
    let (_, again) = create(racers).await?;
    Ok(Race { racers, winners, content, again })
}

/// What is wrong with the store.
fn verdict(race: &Race) -> Result<(), String> {
    let Race { racers, winners, content, again } = race;
    let Some(content) = content else {
        return Err("a key that was just created is absent".into());
    };
    match winners[..] {
        // A store may repeat a request whose answer was lost, and refuse the second one.
        [] => {}
        [winner] if content[..] == winner.to_be_bytes() => {}
        [_] => return Err("the winner of racing creates was overwritten".into()),
        _ => {
            return Err(format!("{} of {racers} racing creates of one key succeeded", winners.len()));
        }
    }
    if *again { Err("a key was created twice".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_store_with_one_winner_passes() {
        let race = |winners: &[u32], content: Option<u32>, again| Race {
            racers: 16,
            winners: winners.to_vec(),
            content: content.map(|racer| racer.to_be_bytes().to_vec()),
            again,
        };
        for (seen, wanted) in [
            (race(&[3], Some(3), false), Ok(())),
            (race(&[], Some(3), false), Ok(())), // Its answer was lost.
            (race(&[3], Some(4), false), Err("overwritten")),
            (race(&[3, 4], Some(4), false), Err("2 of 16")), // Checks, then writes.
            (race(&Vec::from_iter(0..16), Some(9), true), Err("16 of 16")), // Ignores the condition.
            (race(&[3], Some(3), true), Err("twice")),
            (race(&[3], None, false), Err("absent")),
        ] {
            match (verdict(&seen), wanted) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, wanted) => panic!("{got:?}, not {wanted:?}"),
            }
        }
    }
}

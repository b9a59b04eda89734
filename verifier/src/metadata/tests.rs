use segvault_kafka_log::metadata::image::{PartitionImage, TopicImage};

use super::*;

const ID: Uuid = Uuid([7; 16]);

fn image() -> MetadataImage {
    let partitions =
        BTreeMap::from([0, 1].map(|partition| (partition, PartitionImage { leader_epoch: 5, ..Default::default() })));
    let topic = TopicImage { name: "t".to_owned(), id: ID, partitions };
    let mut image = MetadataImage::default();
    image.topics.insert(ID, topic);
    image.next_producer_id = Some(2000);
    image
}

fn point() -> PointManifest {
    let entry = |partition, end_offset| PartitionEntry {
        topic_id: ID.0.to_vec(),
        topic: "t".to_owned(),
        partition,
        end_offset,
        max_epoch: 5,
        ..PartitionEntry::default()
    };
    let covered = PartitionEntry { stream: Some(Default::default()), ..entry(0, 10) };
    PointManifest { partitions: vec![covered, entry(1, 0)], max_producer_id: 1999, ..PointManifest::default() }
}

#[test]
fn metadata_that_does_not_agree_with_the_partitions_is_a_flaw() {
    type Change = fn(&mut MetadataImage, &mut PointManifest, &mut Greatest);
    let changes: [(Change, &str); 9] = [
        (|_, _, _| (), ""),
        (|_, point, _| point.partitions[0].topic_id[0] = 8, "its topic id is not that of the metadata"),
        (|_, point, _| point.partitions[1].partition = 2, "the metadata does not know it"),
        (|_, point, _| drop(point.partitions.remove(1)), "it is in the metadata and not in the point"),
        (|_, point, _| point.partitions[1].end_offset = 3, "it ends at offset 3 and has no bytes"),
        (|_, point, _| point.partitions[0].max_epoch = 4, "a batch has leader epoch 5, the point says 4"),
        (
            |_, point, greatest| (point.partitions[0].max_epoch, greatest.epoch) = (6, 6),
            "leader epoch 6, the metadata 5",
        ),
        (
            |_, point, _| point.max_producer_id = 1998,
            "producer id 1999 is in use, the point says that 1998 is the last",
        ),
        (|image, _, _| image.next_producer_id = Some(1999), "producer id 1999 is in use, and 1999 is to be given away"),
    ];
    for (change, expected) in changes {
        let (mut image, mut point) = (image(), point());
        let mut greatest = Greatest { epoch: 5, producer_id: 1999 };
        change(&mut image, &mut point, &mut greatest);
        let mut flaws = Flaws::default();
        check_partitions(&image, &point, &mut flaws);
        check_greatest(&image, &point, -1, &BTreeMap::from([(TopicPartition::new("t", 0), greatest)]), &mut flaws);
        let (flaws, _, _) = flaws.into_parts();
        assert!(flaws.iter().all(|flaw| flaw.level == 1), "{flaws:?}");
        let says = flaws.iter().any(|flaw| flaw.what.contains(expected));
        assert!(if expected.is_empty() { flaws.is_empty() } else { says }, "{expected}: {flaws:?}");
    }
}

#[test]
fn offsets_may_be_missing_where_the_topic_is_compacted_or_the_point_says_so() {
    let (mut image, mut point) = (image(), point());
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Unexplained);
    point.partitions[0].notes.push("offsets 3 to 4 are missing".to_owned());
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Unexplained, "the point calls itself complete");
    point.degraded = true;
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Told);
    let config = |policy: &str| BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
    let default = BTreeMap::from([("log.cleanup.policy".to_owned(), "compact".to_owned())]);
    image.configs.insert((BROKER_CONFIG, String::new()), default);
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Expected);
    image.configs.insert((TOPIC_CONFIG, "t".to_owned()), config("delete"));
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Told);
    image.configs.insert((TOPIC_CONFIG, "t".to_owned()), config("compact,delete"));
    assert_eq!(gaps(&image, &point, &point.partitions[0]), Gaps::Expected);
}

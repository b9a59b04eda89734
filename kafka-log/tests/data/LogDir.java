import java.util.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.header.internals.*;
import org.apache.kafka.common.serialization.*;

/**
 * Fills the log dir of a one-broker cluster for tests/log_dir.rs: all codecs, transactions across a roll, an open one
 * at the end, LogAppendTime, an empty and a compacted topic. Record n has the key "key-n" and so on: see send.
 *
 * <pre>
 * scripts/kafka up DIR --version V --brokers 1 --set offsets.topic.num.partitions=1 \
 *     --set transaction.state.log.num.partitions=1 --set log.cleaner.backoff.ms=500
 * scripts/kafka java DIR kafka-log/tests/data/LogDir.java "$(scripts/kafka bootstrap DIR)"
 * (wait until DIR/node1/data0/cleaner-offset-checkpoint is not empty)
 * scripts/kafka stop DIR
 * </pre>
 *
 * Then data0, without *.deleted, .lock, bootstrap.checkpoint, __cluster_metadata-0 and __transaction_state-0, is V/log-dir.
 */
public class LogDir {
    static KafkaProducer<byte[], byte[]> producer(String bs, String txn, String codec, boolean idem) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bs);
        p.put("compression.type", codec);
        p.put("linger.ms", "50");
        p.put("batch.size", "3000");
        p.put("enable.idempotence", "" + idem);
        if (txn != null) { p.put("transactional.id", txn); p.put("transaction.timeout.ms", "800000"); }
        return new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer());
    }
    static Random rnd = new Random(7);
    static byte[] json(int i, int len) {
        StringBuilder s = new StringBuilder("{\"n\":" + i + ",\"payload\":\"");
        while (s.length() < len) s.append("abcdefgh".charAt(rnd.nextInt(8)));
        return s.append("\"}").toString().getBytes();
    }
    static void send(KafkaProducer<byte[], byte[]> p, String topic, int from, int n, int len, long ts) throws Exception {
        List<java.util.concurrent.Future<RecordMetadata>> fs = new ArrayList<>();
        for (int i = from; i < from + n; i++) {
            RecordHeaders h = new RecordHeaders();
            if (i % 3 == 0) { h.add("source", "gen".getBytes()); h.add("null", null); h.add("source", new byte[0]); }
            byte[] key = i % 5 == 4 && !topic.equals("compact") ? null : ("key-" + i).getBytes();
            byte[] value = i % 7 == 6 ? null : json(i, len);
            fs.add(p.send(new ProducerRecord<>(topic, 0, ts < 0 ? null : ts + i, key, value, h)));
        }
        p.flush();
        for (var f : fs) f.get();
    }
    public static void main(String[] a) throws Exception {
        String bs = a[0];
        long t0 = 1_750_000_000_000L, hour = 3_600_000L;
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bs))) {
            Map<String, String> rolled = Map.of("segment.ms", "" + hour, "segment.jitter.ms", "0", "retention.ms", "-1", "message.timestamp.after.max.ms", "9223372036854775807");
            Map<String, String> append = Map.of("message.timestamp.type", "LogAppendTime", "retention.ms", "-1");
            Map<String, String> compact = new HashMap<>(rolled);
            compact.putAll(Map.of("cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.01"));
            admin.createTopics(List.of(
                new NewTopic("codecs", 1, (short) 1).configs(rolled),
                new NewTopic("txn", 1, (short) 1).configs(rolled),
                new NewTopic("append-time", 1, (short) 1).configs(append),
                new NewTopic("compact", 1, (short) 1).configs(compact),
                new NewTopic("empty", 1, (short) 1))).all().get();
        }
        int n = 0;
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (var p = producer(bs, null, codec, true)) { send(p, "codecs", n, 40, 250, t0); n += 40; }
        }
        try (var p = producer(bs, null, "none", false)) { send(p, "codecs", n, 30, 250, t0 + 3 * hour); n += 30; }
        try (var p = producer(bs, null, "lz4", true)) { send(p, "append-time", 0, 60, 250, -1); }

        // Keys of one batch return in the next, some with null, so that the cleaner empties batches and keeps tombstones.
        for (int round = 0; round < 5; round++)
            try (var p = producer(bs, null, round % 2 == 0 ? "none" : "lz4", true)) {
                send(p, "compact", 0, 20, 150, t0 + round * hour);
                if (round == 1) send(p, "compact", 20, 20, 150, t0 + round * hour);
            }

        KafkaProducer<byte[], byte[]> one = producer(bs, "one", "none", true), two = producer(bs, "two", "lz4", true), three = producer(bs, "three", "zstd", true);
        one.initTransactions(); two.initTransactions(); three.initTransactions();
        long ts = t0;
        for (int round = 0; round < 6; round++) {
            if (round == 3) ts += 3 * hour; // rolls amid the transactions of "three"
            if (round == 0) { three.beginTransaction(); send(three, "txn", 1000, 3, 150, ts); }
            one.beginTransaction(); send(one, "txn", round * 20, 12, 200, ts);
            two.beginTransaction(); send(two, "txn", round * 20 + 12, 8, 200, ts);
            if (round % 2 == 0) one.abortTransaction(); else one.commitTransaction();
            send(two, "txn", 500 + round, 4, 200, ts);
            if (round % 3 == 1) two.commitTransaction(); else two.abortTransaction();
            if (round == 4) { three.abortTransaction(); }
        }
        one.close(); two.close();
        // Stays open across the stop.
        three.beginTransaction(); send(three, "txn", 2000, 5, 150, ts);
        System.out.println("done");
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }
}

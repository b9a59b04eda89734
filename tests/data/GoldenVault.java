import java.util.*;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;

/** What the golden vault's cluster holds (see README.md): `first` before its first point, `second` after it. */
public class GoldenVault {
    static final long HOUR_MS = 3_600_000L, BEGAN_MS = 1_750_000_000_000L;
    static final String SERVERS = System.getProperty("bootstrap");

    static KafkaProducer<String, String> producer(String codec, String transactionalId) {
        Properties p = new Properties();
        p.put("bootstrap.servers", SERVERS);
        p.put("compression.type", codec);
        p.put("linger.ms", "50");
        p.put("batch.size", "2000");
        if (transactionalId != null) {
            p.put("transactional.id", transactionalId);
            p.put("transaction.timeout.ms", "800000");
        }
        return new KafkaProducer<>(p, new StringSerializer(), new StringSerializer());
    }

    /** Records `from` to `to` of a partition; each has its number in key, value and time. */
    static void send(KafkaProducer<String, String> p, String topic, int partition, int from, int to, long timeMs) throws Exception {
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        for (int n = from; n < to; n++)
            sent.add(p.send(new ProducerRecord<>(topic, partition, timeMs + n, "key-" + n % 17, "record " + n + " of " + topic + "-" + partition)));
        p.flush();
        for (var future : sent) future.get();
    }

    static void commitOffsets(int offset) {
        Map<String, Object> c = Map.of("bootstrap.servers", SERVERS, "group.id", "readers");
        try (var consumer = new KafkaConsumer<>(c, new StringDeserializer(), new StringDeserializer())) {
            consumer.commitSync(Map.of(new TopicPartition("events", 0), new OffsetAndMetadata(offset, "by hand")));
        }
    }

    static NewTopic topic(String name, int partitions, String... configs) {
        Map<String, String> all = new HashMap<>(Map.of("retention.ms", "-1", "segment.ms", "" + HOUR_MS, "segment.jitter.ms", "0"));
        for (int i = 0; i < configs.length; i += 2) all.put(configs[i], configs[i + 1]);
        return new NewTopic(name, partitions, (short) 3).configs(all);
    }

    static void first() throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", SERVERS))) {
            admin.createTopics(List.of(topic("events", 2), topic("codecs", 5), topic("payments", 2), topic("empty", 1), topic("still", 1),
                topic("table", 1, "cleanup.policy", "compact"))).all().get();
        }
        try (var p = producer("none", null)) {
            send(p, "events", 0, 0, 100, BEGAN_MS);
            send(p, "events", 0, 100, 150, BEGAN_MS + 2 * HOUR_MS); // Rolls.
            send(p, "events", 1, 0, 40, BEGAN_MS);
            send(p, "still", 0, 0, 60, BEGAN_MS);
            send(p, "table", 0, 0, 80, BEGAN_MS);
        }
        List<String> codecs = List.of("none", "gzip", "snappy", "lz4", "zstd");
        for (int i = 0; i < codecs.size(); i++)
            try (var p = producer(codecs.get(i), null)) { send(p, "codecs", i, 0, 70, BEGAN_MS); }
        try (var p = producer("none", "clerk")) {
            p.initTransactions();
            for (int n = 0; n < 4; n++) {
                p.beginTransaction();
                send(p, "payments", 0, 10 * n, 10 * n + 10, BEGAN_MS + n * HOUR_MS);
                send(p, "payments", 1, 5 * n, 5 * n + 5, BEGAN_MS + n * HOUR_MS);
                if (n % 2 == 0) p.commitTransaction(); else p.abortTransaction();
            }
        }
        commitOffsets(120);
    }

    static void second() throws Exception {
        try (var p = producer("none", null)) {
            send(p, "events", 0, 150, 170, BEGAN_MS + 2 * HOUR_MS);
            send(p, "events", 0, 170, 200, BEGAN_MS + 4 * HOUR_MS); // Rolls.
            send(p, "events", 1, 40, 45, BEGAN_MS);
        }
        commitOffsets(180);
        var p = producer("none", "clerk");
        p.initTransactions();
        p.beginTransaction();
        send(p, "payments", 0, 40, 50, BEGAN_MS + 4 * HOUR_MS);
        p.commitTransaction();
        p.beginTransaction(); // And leaves it open.
        send(p, "payments", 0, 50, 60, BEGAN_MS + 4 * HOUR_MS);
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("first")) first(); else second();
        Runtime.getRuntime().halt(0);
    }
}

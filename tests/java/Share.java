import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;

/**
 * Share groups (KIP-932), which only Java's client of 4.2 and later has in earnest; each argument is one command.
 *
 * <pre>
 *   produce TOPIC FIRST COUNT     records with the values FIRST, FIRST + 1, ... to partition 0, each in a batch of its own
 *   share GROUP TOPIC COUNT       a member of a share group gets that many records, acknowledges them, and leaves; prints
 *                                 their values on one line
 * </pre>
 */
public class Share {
    /** How long a member waits for all of its records. */
    static final Duration WAIT_MAX = Duration.ofSeconds(60);

    public static void main(String[] args) throws Exception {
        for (String command : args) run(command.split(" "));
    }

    static void run(String[] c) throws Exception {
        switch (c[0]) {
            case "produce" -> produce(c[1], Integer.parseInt(c[2]), Integer.parseInt(c[3]));
            case "share" -> System.out.println(String.join(" ", share(c[1], c[2], Integer.parseInt(c[3]))));
            default -> throw new IllegalArgumentException("unknown command: " + String.join(" ", c));
        }
    }

    static Properties properties() {
        Properties props = new Properties();
        props.put("bootstrap.servers", System.getProperty("bootstrap"));
        return props;
    }

    static void produce(String topic, int first, int count) throws Exception {
        try (var producer = new KafkaProducer<>(properties(), new StringSerializer(), new StringSerializer())) {
            for (int n = first; n < first + count; n++) producer.send(new ProducerRecord<>(topic, 0, null, "" + n)).get();
        }
    }

    static List<String> share(String group, String topic, int count) throws Exception {
        // A new group begins at the end unless it is told otherwise.
        try (var admin = org.apache.kafka.clients.admin.Admin.create(properties())) {
            admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.GROUP, group), List.of(new AlterConfigOp(
                new ConfigEntry("share.auto.offset.reset", "earliest"), AlterConfigOp.OpType.SET)))).all().get();
        }
        Properties props = properties();
        props.put("group.id", group);
        List<String> values = new ArrayList<>();
        long end = System.nanoTime() + WAIT_MAX.toNanos();
        try (var consumer = new KafkaShareConsumer<>(props, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            while (values.size() < count && System.nanoTime() < end) {
                consumer.poll(Duration.ofMillis(200)).forEach(record -> values.add(record.value()));
                consumer.commitSync().forEach((partition, error) -> error.ifPresent(e -> { throw e; }));
            }
        }
        return values;
    }
}

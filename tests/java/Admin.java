import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.acl.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.quota.*;
import org.apache.kafka.common.resource.*;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * What rdkafka's admin client cannot do, many commands in one JVM: each argument is one command.
 *
 * <pre>
 *   acl PRINCIPAL OPERATION TOPIC        allow an operation on a topic from any host
 *   scram USER PASSWORD                  SCRAM-SHA-256 and -512 credentials
 *   quota USER BYTES_PER_SECOND          producer quota of a user
 *   broker-config NAME VALUE             dynamic default of all brokers
 *   topic-config TOPIC NAME VALUE        a config of a topic
 *   elect                                preferred leaders everywhere
 *   reassign TOPIC PARTITION 2,3,1       new replicas; returns when it is done
 *   move TOPIC PARTITION BROKER          another log dir of the broker for its replica, if there is; returns when it is done
 *   delete-records TOPIC PARTITION OFFSET
 *   state                                the whole cluster as one line of JSON (tests/src/state.rs reads it)
 *   transactions ID X TOPIC PARTITIONS   Java's own transactional producer, until standard input ends; prints
 *                                        ledger lines (tests/src/ledger.rs) with numbers from X on
 * </pre>
 */
public class Admin {
    static final ObjectMapper JSON = new ObjectMapper();

    public static void main(String[] args) throws Exception {
        Properties props = new Properties();
        props.put("bootstrap.servers", System.getProperty("bootstrap"));
        props.put("default.api.timeout.ms", "120000"); // a busy machine's
        try (org.apache.kafka.clients.admin.Admin admin = org.apache.kafka.clients.admin.Admin.create(props)) {
            for (String command : args) run(admin, command.split(" "));
        }
    }

    static void run(org.apache.kafka.clients.admin.Admin admin, String[] c) throws Exception {
        switch (c[0]) {
            case "acl" -> admin.createAcls(List.of(new AclBinding(
                new ResourcePattern(ResourceType.TOPIC, c[3], PatternType.LITERAL),
                new AccessControlEntry(c[1], "*", AclOperation.fromString(c[2]), AclPermissionType.ALLOW)))).all().get();
            case "scram" -> { // one mechanism per request, or the broker refuses
                for (ScramMechanism m : List.of(ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512))
                    admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(c[1], new ScramCredentialInfo(m, 4096), c[2]))).all().get();
            }
            case "quota" -> admin.alterClientQuotas(List.of(new ClientQuotaAlteration(
                new ClientQuotaEntity(Map.of("user", c[1])),
                List.of(new ClientQuotaAlteration.Op("producer_byte_rate", Double.valueOf(c[2])))))).all().get();
            case "broker-config" -> admin.incrementalAlterConfigs(Map.of(
                new ConfigResource(ConfigResource.Type.BROKER, ""),
                List.of(new AlterConfigOp(new ConfigEntry(c[1], c[2]), AlterConfigOp.OpType.SET)))).all().get();
            case "topic-config" -> admin.incrementalAlterConfigs(Map.of(
                new ConfigResource(ConfigResource.Type.TOPIC, c[1]),
                List.of(new AlterConfigOp(new ConfigEntry(c[2], c[3]), AlterConfigOp.OpType.SET)))).all().get();
            case "elect" -> elect(admin);
            case "reassign" -> reassign(admin, new TopicPartition(c[1], Integer.parseInt(c[2])),
                Stream.of(c[3].split(",")).map(Integer::valueOf).toList());
            case "move" -> move(admin, new TopicPartitionReplica(c[1], Integer.parseInt(c[2]), Integer.parseInt(c[3])));
            case "delete-records" -> admin.deleteRecords(Map.of(
                new TopicPartition(c[1], Integer.parseInt(c[2])), RecordsToDelete.beforeOffset(Long.parseLong(c[3])))).all().get();
            case "state" -> System.out.println(JSON.writeValueAsString(state(admin)));
            case "transactions" -> transactions(c[1], Long.parseLong(c[2]), c[3], Integer.parseInt(c[4]));
            default -> throw new IllegalArgumentException("unknown command: " + String.join(" ", c));
        }
    }

    static void elect(org.apache.kafka.clients.admin.Admin admin) throws Exception {
        for (Optional<Throwable> error : admin.electLeaders(ElectionType.PREFERRED, null).partitions().get().values())
            if (error.isPresent() && !(error.get() instanceof org.apache.kafka.common.errors.ElectionNotNeededException))
                throw new RuntimeException(error.get());
    }

    static void reassign(org.apache.kafka.clients.admin.Admin admin, TopicPartition tp, List<Integer> replicas) throws Exception {
        admin.alterPartitionReassignments(Map.of(tp, Optional.of(new NewPartitionReassignment(replicas)))).all().get();
        for (int tries = 0; !admin.listPartitionReassignments(Set.of(tp)).reassignments().get().isEmpty(); tries++) {
            if (tries > 300) throw new RuntimeException("reassignment of " + tp + " does not end");
            Thread.sleep(100);
        }
    }

    static void move(org.apache.kafka.clients.admin.Admin admin, TopicPartitionReplica replica) throws Exception {
        String from = admin.describeReplicaLogDirs(List.of(replica)).values().get(replica).get().getCurrentReplicaLogDir();
        var dirs = admin.describeLogDirs(List.of(replica.brokerId())).allDescriptions().get().get(replica.brokerId()).keySet();
        var other = dirs.stream().filter(dir -> !dir.equals(from)).findFirst();
        if (from == null || other.isEmpty()) throw new RuntimeException(replica + " has no other log dir");
        admin.alterReplicaLogDirs(Map.of(replica, other.get())).all().get();
        for (int tries = 0; !other.get().equals(admin.describeReplicaLogDirs(List.of(replica)).values().get(replica).get().getCurrentReplicaLogDir()); tries++) {
            if (tries > 300) throw new RuntimeException("the move of " + replica + " does not end");
            Thread.sleep(100);
        }
    }

    // ------------------------------------------------------------ state

    static Map<String, Object> state(org.apache.kafka.clients.admin.Admin admin) throws Exception {
        Map<String, Object> out = new TreeMap<>();
        DescribeClusterResult cluster = admin.describeCluster();
        out.put("cluster_id", cluster.clusterId().get());
        out.put("brokers", cluster.nodes().get().stream().map(Node::id).sorted().toList());
        out.put("topics", topics(admin));
        out.put("broker_configs", brokerConfigs(admin));
        out.put("acls", admin.describeAcls(AclBindingFilter.ANY).values().get().stream().map(Object::toString).sorted().toList());
        Map<String, Object> scram = new TreeMap<>();
        admin.describeUserScramCredentials().all().get().forEach((user, description) -> scram.put(user,
            description.credentialInfos().stream().map(i -> i.mechanism().mechanismName() + ":" + i.iterations()).sorted().toList()));
        out.put("scram", scram);
        Map<String, Object> quotas = new TreeMap<>();
        admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get().forEach((entity, values) ->
            quotas.put(new TreeMap<>(entity.entries()).toString(), new TreeMap<>(values).toString()));
        out.put("quotas", quotas);
        out.put("groups", groups(admin));
        Map<String, Object> transactions = new TreeMap<>();
        admin.listTransactions().all().get().forEach(t -> transactions.put(t.transactionalId(), t.state().toString()));
        out.put("transactions", transactions);
        Map<String, Object> features = new TreeMap<>();
        admin.describeFeatures().featureMetadata().get().finalizedFeatures().forEach((name, range) -> features.put(name, range.maxVersionLevel()));
        out.put("features", features);
        return out;
    }

    static Map<String, Object> topics(org.apache.kafka.clients.admin.Admin admin) throws Exception {
        Set<String> names = admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get();
        Map<String, TopicDescription> topics = admin.describeTopics(names).allTopicNames().get();
        Map<TopicPartition, OffsetSpec> earliest = new HashMap<>(), latest = new HashMap<>();
        List<TopicPartition> led = new ArrayList<>();
        topics.forEach((name, topic) -> topic.partitions().forEach(p -> {
            TopicPartition tp = new TopicPartition(name, p.partition());
            if (p.leader() == null || p.leader().isEmpty()) return;
            led.add(tp);
            earliest.put(tp, OffsetSpec.earliest());
            latest.put(tp, OffsetSpec.latest());
        }));
        var start = admin.listOffsets(earliest).all().get();
        var stable = admin.listOffsets(latest, new ListOffsetsOptions(IsolationLevel.READ_COMMITTED)).all().get();
        var end = admin.listOffsets(latest).all().get();
        var producers = admin.describeProducers(led).all().get();
        var configs = admin.describeConfigs(names.stream().map(n -> new ConfigResource(ConfigResource.Type.TOPIC, n)).toList()).all().get();
        Map<String, Object> out = new TreeMap<>();
        topics.forEach((name, topic) -> {
            List<Object> partitions = new ArrayList<>();
            for (var p : topic.partitions()) {
                TopicPartition tp = new TopicPartition(name, p.partition());
                Map<String, Object> one = new TreeMap<>();
                one.put("leader", p.leader() == null || p.leader().isEmpty() ? -1 : p.leader().id());
                one.put("replicas", p.replicas().stream().map(Node::id).toList());
                one.put("isr", p.isr().stream().map(Node::id).sorted().toList());
                one.put("start", start.containsKey(tp) ? start.get(tp).offset() : -1);
                one.put("end", end.containsKey(tp) ? end.get(tp).offset() : -1);
                one.put("stable", stable.containsKey(tp) ? stable.get(tp).offset() : -1);
                one.put("open", !producers.containsKey(tp) ? 0 : producers.get(tp).activeProducers().stream()
                    .filter(s -> s.currentTransactionStartOffset().isPresent() && s.currentTransactionStartOffset().getAsLong() >= 0).count());
                partitions.add(one);
            }
            out.put(name, Map.of("id", topic.topicId().toString(), "partitions", partitions, "configs",
                set(configs.get(new ConfigResource(ConfigResource.Type.TOPIC, name)), ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG)));
        });
        return out;
    }

    static Map<String, String> set(Config config, ConfigEntry.ConfigSource... sources) {
        return config.entries().stream().filter(e -> List.of(sources).contains(e.source()))
            .collect(Collectors.toMap(ConfigEntry::name, e -> String.valueOf(e.value()), (a, b) -> a, TreeMap::new));
    }

    static Map<String, Object> brokerConfigs(org.apache.kafka.clients.admin.Admin admin) throws Exception {
        List<ConfigResource> resources = new ArrayList<>();
        for (Node node : admin.describeCluster().nodes().get()) resources.add(new ConfigResource(ConfigResource.Type.BROKER, node.idString()));
        Map<String, Object> out = new TreeMap<>();
        admin.describeConfigs(resources).all().get().forEach((resource, config) -> out.put(resource.name(),
            set(config, ConfigEntry.ConfigSource.DYNAMIC_BROKER_CONFIG, ConfigEntry.ConfigSource.DYNAMIC_DEFAULT_BROKER_CONFIG)));
        return out;
    }

    @SuppressWarnings("deprecation") // listConsumerGroups: the one name that 3.7 and 4.3 share
    static Map<String, Object> groups(org.apache.kafka.clients.admin.Admin admin) throws Exception {
        List<String> ids = admin.listConsumerGroups().all().get().stream().map(ConsumerGroupListing::groupId).toList();
        Map<String, ListConsumerGroupOffsetsSpec> specs = new HashMap<>();
        ids.forEach(id -> specs.put(id, new ListConsumerGroupOffsetsSpec()));
        Map<String, Object> out = new TreeMap<>();
        if (!ids.isEmpty()) admin.listConsumerGroupOffsets(specs).all().get().forEach((group, offsets) -> {
            Map<String, Long> one = new TreeMap<>();
            offsets.forEach((tp, offset) -> { if (offset != null) one.put(tp.toString(), offset.offset()); });
            out.put(group, one);
        });
        return out;
    }

    // ------------------------------------------------------------ transactions of protocol version 2

    static void transactions(String id, long number, String topic, int partitions) throws Exception {
        Properties props = new Properties();
        props.put("bootstrap.servers", System.getProperty("bootstrap"));
        props.put("transactional.id", id);
        props.put("transaction.timeout.ms", "30000");
        props.put("linger.ms", "5");
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(props, new ByteArraySerializer(), new ByteArraySerializer())) {
            producer.initTransactions();
            for (; System.in.available() == 0; number++) {
                one(producer, id, number, topic, partitions);
                Thread.sleep(20);
            }
        }
    }

    static void one(KafkaProducer<byte[], byte[]> producer, String id, long number, String topic, int partitions) {
        producer.beginTransaction();
        print("b " + number + " " + id + "\n");
        int records = ThreadLocalRandom.current().nextInt(1, 12);
        List<java.util.concurrent.Future<RecordMetadata>> sent = new ArrayList<>();
        List<String> hashes = new ArrayList<>();
        for (int i = 0; i < records; i++) {
            byte[] key = ("java-" + i).getBytes(), value = ("transaction " + number + " record " + i + " " + "v".repeat(200)).getBytes();
            String unique = number + "/" + i;
            var record = new ProducerRecord<>(topic, i % partitions, key, value);
            record.headers().add("id", unique.getBytes()).add("x", Long.toString(number).getBytes());
            sent.add(producer.send(record));
            hashes.add(String.format("%016x v %016x", fnv(FNV_START, key), hash(key, value, unique.getBytes())));
        }
        producer.flush();
        boolean commit = ThreadLocalRandom.current().nextInt(4) != 0;
        try {
            StringBuilder acknowledged = new StringBuilder();
            for (int i = 0; i < records; i++) {
                RecordMetadata m = sent.get(i).get();
                acknowledged.append("r ").append(topic).append(' ').append(m.partition()).append(' ').append(m.offset()).append(' ')
                    .append(hashes.get(i)).append(' ').append(number).append('\n');
            }
            print(acknowledged + (commit ? "s " + number + "\n" : ""));
            if (commit) commit(producer);
        } catch (ProducerFencedException | TimeoutException | InterruptedException e) {
            throw new RuntimeException(e);
        } catch (ExecutionException | KafkaException e) { // What fails on the way is aborted; a fatal error fails again.
            System.err.println(id + ": " + e + "; it is aborted");
            commit = false;
        }
        if (!commit) producer.abortTransaction();
        print((commit ? "c " : "a ") + number + "\n");
    }

    /** A commit that timed out may be asked for again, and nothing else may. */
    static void commit(KafkaProducer<byte[], byte[]> producer) {
        for (int tries = 1;; tries++)
            try {
                producer.commitTransaction();
                return;
            } catch (TimeoutException e) {
                if (tries == 3) throw e;
            }
    }

    static void print(String lines) {
        System.out.print(lines);
        System.out.flush();
    }

    static final long FNV_START = 0xcbf29ce484222325L;

    static long fnv(long hash, byte[] bytes) {
        for (byte b : bytes) hash = (hash ^ (b & 0xff)) * 0x100000001b3L;
        return hash;
    }

    /** The same as content_hash in tests/src/ledger.rs: lengths keep the fields apart. */
    static long hash(byte[] key, byte[] value, byte[] id) {
        long hash = FNV_START;
        for (byte[] part : new byte[][] {key, value, id}) hash = fnv(fnv(hash, java.nio.ByteBuffer.allocate(4).putInt(part.length).array()), part);
        return hash;
    }
}

import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.acl.*;
import org.apache.kafka.common.config.*;
import org.apache.kafka.common.quota.*;
import org.apache.kafka.common.resource.*;
import org.apache.kafka.common.serialization.*;

public class Workload {
  static String bs;
  static Map<String,Object> base(){ Map<String,Object> m=new HashMap<>(); m.put("bootstrap.servers",bs); return m; }
  public static void main(String[] a) throws Exception {
    bs=a[0]; boolean next=a.length>1;
    try (Admin ad=Admin.create(base())) {
      ad.createTopics(List.of(new NewTopic("orders",3,(short)1).configs(Map.of("retention.ms","3600000","cleanup.policy","compact")), new NewTopic("gone",2,(short)1).configs(Map.of("segment.ms","100000")), new NewTopic("wide",12,(short)1))).all().get();
      ad.createAcls(List.of(new AclBinding(new ResourcePattern(ResourceType.TOPIC,"orders",PatternType.LITERAL),new AccessControlEntry("User:alice","*",AclOperation.READ,AclPermissionType.ALLOW)),
        new AclBinding(new ResourcePattern(ResourceType.GROUP,"g",PatternType.PREFIXED),new AccessControlEntry("User:bob","10.0.0.1",AclOperation.DESCRIBE,AclPermissionType.DENY)))).all().get();
      ad.deleteAcls(List.of(new AclBindingFilter(new ResourcePatternFilter(ResourceType.GROUP,"g",PatternType.PREFIXED),AccessControlEntryFilter.ANY))).all().get();
      ad.createAcls(List.of(new AclBinding(new ResourcePattern(ResourceType.GROUP,"g2",PatternType.PREFIXED),new AccessControlEntry("User:bob","10.0.0.1",AclOperation.DESCRIBE,AclPermissionType.DENY)))).all().get();
      ad.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion("alice",new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256,4096),"secret-of-alice"), new UserScramCredentialUpsertion("bob",new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512,4096),"secret-of-bob"))).all().get();
      ad.alterUserScramCredentials(List.of(new UserScramCredentialDeletion("bob",ScramMechanism.SCRAM_SHA_512))).all().get();
      ad.alterClientQuotas(List.of(new ClientQuotaAlteration(new ClientQuotaEntity(Map.of("user","alice","client-id","c1")),List.of(new ClientQuotaAlteration.Op("producer_byte_rate",12345.0),new ClientQuotaAlteration.Op("consumer_byte_rate",99.0))))).all().get();
      Map<String,String> def=new HashMap<>(); def.put("user",null);
      ad.alterClientQuotas(List.of(new ClientQuotaAlteration(new ClientQuotaEntity(def),List.of(new ClientQuotaAlteration.Op("request_percentage",50.0))))).all().get();
      ad.alterClientQuotas(List.of(new ClientQuotaAlteration(new ClientQuotaEntity(Map.of("user","alice","client-id","c1")),List.of(new ClientQuotaAlteration.Op("consumer_byte_rate",null))))).all().get();
      ad.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.BROKER,""),List.of(new AlterConfigOp(new ConfigEntry("log.cleaner.threads","2"),AlterConfigOp.OpType.SET)),
         new ConfigResource(ConfigResource.Type.TOPIC,"orders"),List.of(new AlterConfigOp(new ConfigEntry("retention.ms",""),AlterConfigOp.OpType.DELETE),new AlterConfigOp(new ConfigEntry("max.message.bytes","2000000"),AlterConfigOp.OpType.SET)))).all().get();
      ad.deleteTopics(List.of("gone")).all().get();
      ad.createPartitions(Map.of("wide",NewPartitions.increaseTo(14))).all().get();
    }
    for (int t=0;t<2;t++) {
      Map<String,Object> p=base(); p.put("transactional.id","tx-"+t); p.put("key.serializer",StringSerializer.class); p.put("value.serializer",StringSerializer.class);
      KafkaProducer<String,String> pr=new KafkaProducer<>(p); pr.initTransactions();
      for(int i=0;i<4;i++){ pr.beginTransaction(); for(int k=0;k<3;k++) pr.send(new ProducerRecord<>("wide",(i+k)%12,"k"+k,"v"+i));
        pr.send(new ProducerRecord<>("orders",i%3,"k","v"+i));
        pr.sendOffsetsToTransaction(Map.of(new TopicPartition("wide",i),new OffsetAndMetadata(10+i,Optional.of(0),"in tx")),new ConsumerGroupMetadata("txgroup"));
        if(i==1) pr.abortTransaction(); else if (i==3 && t==1) { pr.flush(); } else pr.commitTransaction(); }
      if(t==0) pr.close();
    }
    for (String proto : next? new String[]{"classic","consumer"}: new String[]{"classic"}) {
      Map<String,Object> c=base(); c.put("group.id","group-"+proto); c.put("key.deserializer",StringDeserializer.class); c.put("value.deserializer",StringDeserializer.class); c.put("auto.offset.reset","earliest"); c.put("enable.auto.commit",false); c.put("client.id","client"); 
      if(next) c.put("group.protocol",proto); else c.put("group.instance.id","inst-1");
      try(KafkaConsumer<String,String> co=new KafkaConsumer<>(c)) { co.subscribe(java.util.regex.Pattern.compile("wide|orders")); 
        int n=0; long end=System.currentTimeMillis()+20000; while(n<10 && System.currentTimeMillis()<end) n+=co.poll(java.time.Duration.ofMillis(500)).count(); System.out.println(proto+" read "+n);
        co.commitSync(); co.commitSync(Map.of(new TopicPartition("wide",0),new OffsetAndMetadata(1,Optional.empty(),"by hand"))); }
    }
    try (Admin ad=Admin.create(base())) { ad.deleteConsumerGroupOffsets("group-classic",Set.of(new TopicPartition("wide",0))).all().get();
     var s=ad.describeFeatures().featureMetadata().get(); System.out.println(s); }
    System.exit(0);
  }
}

import java.io.*;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.util.*;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.protocol.*;
import org.apache.kafka.common.metadata.MetadataRecordType;
import org.apache.kafka.metadata.MetadataRecordSerde;
import org.apache.kafka.server.common.ApiMessageAndVersion;

/** Every record type in every version with every field filled, written by Kafka's own classes: [i32 length, bytes]*. */
public class EveryRecord {
  static int n = 1;
  static Object sample(Class<?> t, Type g) throws Exception {
    n++;
    if (t == boolean.class) return true;
    if (t == byte.class) return (byte)(n % 100 + 1);
    if (t == short.class) return (short)(n + 300);
    if (t == int.class) return n % 60000;
    if (t == long.class) return n * 10_000_000_000L;
    if (t == double.class) return n * 1.5;
    if (t == String.class) return "text-" + n;
    if (t == Uuid.class) return new Uuid(n, -n);
    if (t == byte[].class) return ("bytes-" + n).getBytes();
    if (Collection.class.isAssignableFrom(t)) {
      Class<?> el; Collection<Object> c;
      if (t == List.class) { el = (Class<?>)((ParameterizedType)g).getActualTypeArguments()[0]; c = new ArrayList<>(); }
      else { c = (Collection<Object>) t.getDeclaredConstructor().newInstance(); el = (Class<?>)((ParameterizedType)t.getGenericSuperclass()).getActualTypeArguments()[0]; }
      if (el == Integer.class) { c.add(n); c.add(n+1);} else if (el == Short.class) { c.add((short)n); } else for (int i=0;i<2;i++) c.add(sample(el, null));
      return c;
    }
    Object o = t.getDeclaredConstructor().newInstance();
    fill(o, null);
    return o;
  }
  static void fill(Object o, java.util.function.BooleanSupplier ok) throws Exception {
    for (Method m : sorted(o.getClass())) {
      Field f; String fn = Character.toLowerCase(m.getName().charAt(3)) + m.getName().substring(4);
      try { f = o.getClass().getDeclaredField(fn); } catch (NoSuchFieldException e) { continue; }
      f.setAccessible(true);
      Object old = f.get(o);
      Object v = sample(m.getParameterTypes()[0], m.getGenericParameterTypes()[0]);
      if (m.getName().equals("setPort")) v = 40000 + n % 20000;
      m.invoke(o, v);
      if (ok != null && !ok.getAsBoolean()) f.set(o, old);
    }
  }
  static List<Method> sorted(Class<?> c) { List<Method> l = new ArrayList<>(); for (Method m : c.getDeclaredMethods()) if (m.getName().startsWith("set") && m.getParameterCount()==1 && !m.getName().equals("setNext") && !m.getName().equals("setPrev")) l.add(m); l.sort(Comparator.comparing(Method::getName)); return l; }
  static byte[] ser(ApiMessage m, short v) {
    ObjectSerializationCache c = new ObjectSerializationCache();
    ByteBuffer b = ByteBuffer.allocate(MetadataRecordSerde.INSTANCE.recordSize(new ApiMessageAndVersion(m, v), c));
    MetadataRecordSerde.INSTANCE.write(new ApiMessageAndVersion(m, v), c, new ByteBufferAccessor(b));
    return b.array();
  }
  static byte[] versioned(ApiMessage m, short v) { ByteBuffer b = MessageUtil.toVersionPrefixedByteBuffer(v, m); byte[] r = new byte[b.remaining()]; b.get(r); return r; }
  static byte[] strip(byte[] b) { return b; }
  static void put(DataOutputStream o, byte[] b) throws IOException { o.writeInt(b.length); o.write(b); }
  static ApiMessage make(Class<?> c) throws Exception { return (ApiMessage) c.getDeclaredConstructor().newInstance(); }
  public static void main(String[] a) throws Exception {
    try (DataOutputStream o = new DataOutputStream(new FileOutputStream("metadata-records.bin"))) {
      for (MetadataRecordType t : MetadataRecordType.values()) {
        ApiMessage p = t.newMetadataRecord();
        for (short v = p.lowestSupportedVersion(); v <= p.highestSupportedVersion(); v++) {
          put(o, ser(t.newMetadataRecord(), v));
          ApiMessage m = t.newMetadataRecord(); short fv = v;
          fill(m, () -> { try { ser(m, fv); return true; } catch (RuntimeException e) { return false; } });
          put(o, ser(m, v)); System.out.println(t + " v" + v + " " + m);
        }
      }
    }
    coordinator("group-records.bin", "org.apache.kafka.coordinator.group.generated", org.apache.kafka.coordinator.group.generated.CoordinatorRecordType.values());
    coordinator("transaction-records.bin", "org.apache.kafka.coordinator.transaction.generated", org.apache.kafka.coordinator.transaction.generated.CoordinatorRecordType.values());
    coordinator("share-records.bin", "org.apache.kafka.coordinator.share.generated", org.apache.kafka.coordinator.share.generated.CoordinatorRecordType.values());
  }
  /** [key, value]*: key = i16 type, body; value = i16 version, body. */
  static void coordinator(String file, String pkg, Object[] types) throws Exception {
    try (DataOutputStream o = new DataOutputStream(new FileOutputStream(file))) {
      for (Object t : types) {
        short id = (Short) t.getClass().getMethod("id").invoke(t);
        ApiMessage p = (ApiMessage) t.getClass().getMethod("newRecordValue").invoke(t);
        for (short v = p.lowestSupportedVersion(); v <= p.highestSupportedVersion(); v++) {
          ApiMessage k = (ApiMessage) t.getClass().getMethod("newRecordKey").invoke(t); fill(k, null);
          byte[] kb = versioned(k, (short)0); kb[0] = (byte)(id >> 8); kb[1] = (byte) id;
          ApiMessage m = (ApiMessage) t.getClass().getMethod("newRecordValue").invoke(t);
          put(o, kb); put(o, versioned(m, v)); short fv = v;
          fill(m, () -> { try { versioned(m, fv); return true; } catch (RuntimeException e) { return false; } });
          put(o, kb); put(o, versioned(m, v)); System.out.println(t + " v" + v + " " + k + " " + m);
        }
      }
    }
  }
}

import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import java.util.List;

/** Serves one H2 file as MongoDB: `java Launcher.java PORT FILE`. */
public class Launcher {
    /** The driver asks for wire version 9; the server has what is used of it, but says 8. */
    static class Version implements MongoVersion {
        public List<Integer> getVersionArray() { return List.of(4, 4, 0); }
        public int getWireVersion() { return 9; }
        public String toVersionString() { return "4.4.0"; }
    }

    public static void main(String[] arguments) {
        H2Backend backend = new H2Backend(arguments[1]);
        backend.version(new Version());
        new MongoServer(backend).bind("127.0.0.1", Integer.parseInt(arguments[0]));
    }
}

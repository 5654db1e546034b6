"""The limits of the server: whatever clients can make grow by asking is bounded here."""

MAX_CHARACTERS, MAX_QUERIES = 500, 64  # of a query; of a request
MAX_K, MAX_CANDIDATES = 100, 2000  # videos of an answer; videos that are reranked
MAX_NAME, MAX_FOLDER = 4096, 600  # characters of the id of a video; of a folder, which addresses must hold
MAX_FOLDERS = 100  # folders that the page offers
MAX_BODY, MAX_HEADERS = 1 << 18, 1 << 14  # bytes
MAX_REQUESTS, DOWNLOADS = 256, 128  # under way at once; of them files and pictures, which cannot crowd out searches
CONNECTIONS, BACKLOG = 512, 128  # at once, fewer where the process may not open as many files; those that may wait
MAX_FILE, FILES = 64 << 20, 4  # bytes of a file to search by; such files in memory, of which one is decoded at a time
TURN = 3.0  # seconds for which a file may wait for those before it; with the next it stays below GRACE
DECODING, DECODER = 6.0, 3 << 30  # seconds in which a clip must be decoded; bytes of memory of the process that does
FRAMES, PIXELS = 10_000, 64_000_000  # of such a clip: five minutes at 30 a second; of such a picture
BATCH, CAPACITY = 64, 256  # queries searched together; queries that may wait
GATHER = 0.003  # seconds for which an idle worker waits for more queries
PATIENCE = 10.0  # seconds after which a search without an answer is given up
SLOWEST, FILE_SLOWEST = 10.0, 120.0  # seconds in which a client must send its headers, and again its body; or a file
STALLED = 30.0  # seconds in which a client must take what waits for it, at most 64 KiB
LINGER, LINGERING = 2.0, 1 << 20  # seconds and bytes that are still read, to no use, of a body that is refused
GRACE, ABORT = 10, 5.0  # seconds for requests to end when the server is stopped; for what is being sent by then
PIECE = 1 << 18  # bytes of a range, for clients that ask for pieces
RETRY = 1  # seconds after which a client may ask an overloaded server again

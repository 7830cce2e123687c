struct counts { long lines, words; };
struct counts count(int fd);

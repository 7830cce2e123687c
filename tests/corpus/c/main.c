#include <stdio.h>

#include "words.h"

int main(void) {
    struct counts all = count(0);
    printf("%ld lines, %ld words\n", all.lines, all.words);
    return 0;
}

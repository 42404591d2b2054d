#include "tools/eval/answers.h"

#include <gtest/gtest.h>

#include <fstream>

#include "kvcodec/error.h"

namespace kvcodec {
namespace {

TEST(AnswersTest, NumbersAsTheHarnessReadsThem) {
    EXPECT_EQ(strict_number("9 * 2 = 18\n#### 18"), "18");
    EXPECT_EQ(strict_number("#### 1,234.50 dollars"), "1234.50");
    EXPECT_EQ(strict_number("#### -7."), "-7");
    EXPECT_EQ(strict_number("####18"), std::nullopt);
    EXPECT_EQ(strict_number("It is 18"), std::nullopt);
    EXPECT_EQ(flexible_number("He pays 3 and then $1,250."), "1250");
    EXPECT_EQ(flexible_number("so 5 - 7 = -2"), "-2");
    EXPECT_EQ(flexible_number("#### 18"), "18");
    EXPECT_EQ(flexible_number("none"), std::nullopt);
}

TEST(AnswersTest, StopsCutAtTheFirst) {
    EXPECT_EQ(before_stop("18\nQuestion: and</s>", {"</s>", "Question:"}), "18\n");
    EXPECT_EQ(before_stop("all of it", {"</s>"}), "all of it");
}

TEST(AnswersTest, F1CountsCommonWords) {
    EXPECT_DOUBLE_EQ(f1_score("The Eiffel Tower.", "eiffel tower"), 1);
    EXPECT_NEAR(f1_score("in the tower of London", "London"), 2 * 0.25 * 1 / 1.25, 1e-12);
    EXPECT_DOUBLE_EQ(f1_score("", "London"), 0);
    EXPECT_NEAR(f1_score("x x y", "x y y"), 2.0 / 3, 1e-12);
}

TEST(AnswersTest, RougeLFollowsOrder) {
    EXPECT_DOUBLE_EQ(rouge_l("the cat sat", "the cat sat"), 1);
    EXPECT_NEAR(rouge_l("a b c d", "d c b a"), 0.25, 1e-12);
    EXPECT_NEAR(rouge_l("a x b", "a b"), 2 * (2.0 / 3) * 1 / (5.0 / 3), 1e-12);
}

TEST(AnswersTest, EditSimilarityOfTheFirstCodeLine) {
    EXPECT_DOUBLE_EQ(edit_similarity("```python\n# comment\nreturn x\nmore", "return x"), 1);
    EXPECT_NEAR(edit_similarity("return y", "return x"), 1 - 1.0 / 8, 1e-12);
    EXPECT_DOUBLE_EQ(edit_similarity("# only a comment", "x"), 0);
}

TEST(AnswersTest, ClassesAndNumbers) {
    const std::vector<std::string> classes = {"Food", "Food product", "Animal"};
    EXPECT_DOUBLE_EQ(classification_score("It is Food product.", "Food product", classes), 1);
    EXPECT_DOUBLE_EQ(classification_score("Food or Animal", "Animal", classes), 0.5);
    EXPECT_DOUBLE_EQ(classification_score("Food", "Animal", classes), 0);
    EXPECT_DOUBLE_EQ(number_score("Paragraph 7", "Paragraph 7"), 1);
    EXPECT_DOUBLE_EQ(number_score("7 or 8", "Paragraph 7"), 0.5);
    EXPECT_DOUBLE_EQ(number_score("none", "Paragraph 7"), 0);
    EXPECT_DOUBLE_EQ(contains_score("The number is 12345.", "12345"), 1);
}

TEST(AnswersTest, ChosenLetter) {
    EXPECT_EQ(chosen_letter("Thus the answer is (C).", 10), 'C');
    EXPECT_EQ(chosen_letter("The answer is A. No: the answer is: B", 4), 'B');
    EXPECT_EQ(chosen_letter(" (D) ", 4), 'D');
    EXPECT_EQ(chosen_letter("the answer is (J)", 4), std::nullopt);
    EXPECT_EQ(chosen_letter("perhaps C or D", 4), std::nullopt);
}

TEST(AnswersTest, ProblemsComeFromJsonLines) {
    const std::string path = testing::TempDir() + "problems.jsonl";
    std::ofstream(path) << "{\"question\": \"1+1?\", \"answer\": \"#### 2\"}\n\n{\"question\": 5}\n";
    const auto problems = read_problems(path, 1);
    ASSERT_EQ(problems.size(), 1U);
    EXPECT_EQ(problems[0].question, "1+1?");
    try {
        read_problems(path, 2);
        FAIL() << "a malformed line was accepted";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(path + ", line 2"), std::string::npos) << error.what();
    }
    EXPECT_THROW(read_problems(path + ".absent", 1), Error);
}

}  // namespace
}  // namespace kvcodec
